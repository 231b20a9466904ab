r"""Units behind a number: an allow-list, so that no word that changes the value is ever dropped.

    read("km per hour")     # "h^-1 km^1"
    read("square inches")   # "in^2"
    read("ordered pairs")   # "pair"
    read("tenths")          # None: no unit, so it stays beside the number and the answer is no number

What is on the list only says what was counted or measured. Left out on purpose: whatever multiplies (dozen, pair,
score, hundred, lakh, k, K, M), divides (half, quarter, tenths), or is worth another amount of the unit that is likely
meant (dime, nickel, decade, century, revolution), and everything that is not a name: "squared" without a unit before
it, "factorial", "more", "below", "or", "not".
"""

import functools
import re
from collections import Counter

MAX_CHARS = 60  # of the words behind a number that are looked at
# the name under which units are compared, and its other spellings (a plural with -s goes without saying)
MEASURES = """
m meter metre          | cm centimeter centimetre   | mm millimeter millimetre  | km kilometer kilometre
in inch inches         | ft foot feet               | yd yard                   | mi mile
s sec second              | min minute mins            | h hr hrs hour             | day
week wk                   | month                      | year yr yrs               | ms millisecond
g gram gramme          | kg kilogram kilogramme     | mg milligram              | ton tonne
lb lbs pound £            | oz ounce                   | L l liter litre           | mL ml milliliter millilitre
gal gallon             | qt quart                   | pint                      | cup
tbsp tablespoon        | tsp teaspoon               | acre                      | ha hectare
N newton               | J joule                    | W watt                    | V volt
kJ kilojoule           | kW kilowatt                | kWh                       | Hz hertz
Pa pascal              | kPa                        | mol mole                  | kelvin
° degree deg           | rad radian                 | % percent percentage pct  | unit
$ dollar USD usd buck  | ¢ cent                     | € euro EUR                | ¥ yuan yen RMB
₹ rupee                | ruble rouble               | forint                    | pence
cal calorie            | kcal                       | knot                      | byte
bit                    | pixel                      | baht                      | peso
"""
COUNTED = """
angle animal answer apple arrangement athlete ball banana bead bean bicycle bird block boat book bottle box boxes boy
branch branches brick bus buses cake candidate candies candle candy car card cat cell chair child children chocolate
choice circle cities city class classes coin color coloring column combination committee committees contestant cookie
corner cow crayon customer dancer diagonal digit divisor dog doll dot duck edge egg element employee equation face
factor families family fish floor flower friend frog function game gift girl goal grape graph group guest handshake
horse house integer item jelly key kid knight lamp lap leaf leaves letter light line locker man marble mark match
matches member men message method mice mouse mushroom number object orange ordering outcome page painting pancake
participant partition passenger path pattern peach peaches pear pebble pen pencil people permutation person petal
piece pizza plant plate player point polygon possibilities possibility post potato potatoes prize problem question
rabbit rectangle region ring rock room rose rounds route row scholar seat segment sequence set shape sheep sheet shirt
sibling side sister slice slices snack sock soldier solution song spot stamp star step sticker stone straw student
subset sweet table tail task teacher team term ticket tile tourist toy train tree triangle value variable vertex
vertices visitor vote voter wall way wheel win window woman women word worker
"""
OF_ONE = "year day month week"  # "12 years old"
ORDERED = "pair triple quadruple quintuple tuple"  # "6 ordered pairs" are 6, "6 pairs" may be 12
QUALITIES = """
different distinct possible positive real integer integral valid unique prime lattice whole natural red blue green
yellow black white
"""
RATES = {"mph": {"mi": 1, "h": -1}, "kph": {"km": 1, "h": -1}, "kmh": {"km": 1, "h": -1}}
SCALES = {"celsius": "°C", "C": "°C", "fahrenheit": "°F", "F": "°F"}
WORD = re.compile(r"[A-Za-z]+|[°%$€£¥₹¢]|\^-?\d|/|[ ~.·*-]")


@functools.cache
def _spellings() -> dict[str, str]:
    """Return every spelling of MEASURES with the first one of its entry."""
    table = {}
    for entry in MEASURES.replace("\n", "|").split("|"):
        names = entry.split()
        for name in names:
            table[name] = names[0]
            if len(name) > 2 and name.islower():
                table[name + "s"] = names[0]
    return table


@functools.cache
def _countable() -> set[str]:
    """Return COUNTED's words and their plurals."""
    return {form for noun in COUNTED.split() for form in (noun, noun + "s")}


def read(words: str) -> str | None:
    r"""Return the unit that these words name, in one spelling for all; "" for "units"; None when it is none.

    >>> read("sq. cm"), read("cm^2"), read("miles per hour"), read("mph"), read("square units"), read("dozen")
    ('cm^2', 'cm^2', 'h^-1 mi^1', 'h^-1 mi^1', '', None)
    """
    words = words.strip()
    if not words or len(words) > MAX_CHARS:
        return None
    counted = _counted(words.rstrip("."))
    return _measure(words) if counted is None else counted


def compatible(one: str | None, other: str | None) -> bool:
    """Return whether two answers with these units can be the same: a unit that is left out is no other unit."""
    if not one or not other or one == other:
        return True
    return {one, other} in ({"°^1", "°C^1"}, {"°^1", "°F^1"})


def _counted(words: str) -> str | None:
    """Return the noun of "distinct real solutions" in the singular, None for other words."""
    *before, noun = words.lower().split() or [""]
    if before and before[-1] == "ordered" and noun.rstrip("s") in ORDERED.split():
        return noun.rstrip("s")
    if noun in _countable() and all(word in QUALITIES.split() for word in before):
        return noun.rstrip("s")
    return None


def _measure(words: str) -> str | None:
    """Return a product or quotient of MEASURES' units with their powers, None for other words."""
    words = words.replace("per cent", "percent")
    tokens = WORD.findall(words)
    if "".join(tokens) != words:
        return None
    powers, last, power, sign, pending = Counter(), "", 1, 1, False
    for token in tokens:
        if token in " ~.·*-":
            continue
        name = _spellings().get(token) or (_spellings().get(token.lower()) if len(token) > 2 else None)
        if token in ("/", "per"):
            if pending:
                return None
            sign, pending = -1, True
        elif token.lower() in ("square", "sq", "cubic", "cu"):
            power, pending = 2 if token[0] in "sS" else 3, True
        elif token in ("squared", "cubed") or token[0] == "^":
            if pending or not last:
                return None
            times = {"squared": 2, "cubed": 3}.get(token) or int(token[1:])
            powers[last] *= times
        elif last == "°" and (token in SCALES or token.lower() in SCALES):
            del powers["°"]
            powers[SCALES.get(token) or SCALES[token.lower()]] = 1
        elif token == "old" and last in OF_ONE.split():
            continue
        elif token in RATES and not powers:
            powers.update(RATES[token])
        elif name is not None:
            powers[name] += sign * power
            last, power, pending = name, 1, False
        else:
            return None
    if pending or not powers:
        return None
    return " ".join(f"{name}^{n}" for name, n in sorted(powers.items()) if name != "unit")
