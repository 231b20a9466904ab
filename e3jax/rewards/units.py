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
actor agent airplane aisle album altitude angle animal answer ant apartment apple archer arrangement array article
artist assignment assortment asymptote athlete attempt aunt bag bagel baker ball balloon banana barcode baseball
basket basketball battery battle bead beaker bean bear bee beetle berry bicycle bill bird bisector blank block boat
bolt book bookmark boot boss bottle bowl box boy bracelet branch brick bridge brother building bulb burger bus
butterfly button cake call can candidate candle candy cap captain car card carrot case cashier cat cell chair chapter
character chart chef cherry chicken chocolate choice chord circle citizen city class classmate clerk client club coat
code coefficient coin collection color coloring column combination committee competitor computer cone configuration
contestant cook cookie copy corner country county court cousin cow crate crayon crossing cube cupcake customer cut
cycle dancer dentist descendant device diagonal digit disk distribution district divisor doctor dog doll dollhouse
donut dot doughnut driver duck edge egg element elephant email employee engineer envelope equation event face factor
family file fish flag flip floor flower folder football forest fork friend frog fruit function gallery game garden
gift girl glass glove goal goat graduate grape graph group guest hamburger hammer handshake hat head hen hexagon hiker
hill hole home horse house insect integer intersection interval island islander item jacket jar jelly joke judge
kangaroo key kick kid kite knave knight lake lamp lap laptop lawyer lemon letter liar lie light line lineup lion
locker log loser magazine mailbox manager mango mapping marble mark marker match matchstick medal meeting melon member
menu message method mirror moment monkey monomial mountain move muffin mug mushroom musician nail necklace neighbor
nephew network newspaper niece number numeral nurse nut object octagon office officer onion option orange orbital
ordering outcome package page painting pairing pan pancake pant paragraph parallelogram parameter parcel parent park
part participant partition passcode passenger password path patient pattern peach peanut pear pebble peg pen pencil
pentagon permutation personality petal phone photo photograph picture pie piece pig pilot pirate pit pizza plan plane
plant plate player plum poem point pole polygon polynomial possibility post pot potato pretzel printer prize problem
program pupil pyramid quadrilateral question rabbit racer racket rectangle region representative resident result
rhombus ribbon ring river road rock rod roll room root rose round route row run runner sailor sandwich scenario scheme
scholar school scientist scooter screen screw sculpture seat seating secant segment selection sentence sequence set
shape sheep sheet ship shirt shop sibling side singer sister situation slate slice snack snake sock soldier solution
song sophomore specialist spider spoon spot spy square stamp star statue step stick sticker stone store strategy straw
strawberry street strike string student subset swap sweater sweet swimmer switch table tail tangent task teacher team
teammate term throw ticket tiger tile tiling tomato tool toothpick tour tourist town toy trail train trapezoid tree
trial triangle tricycle trip truck tulip turkey turtle uncle value variable vector vehicle village villager visitor
vote voter wagon waiter walk wall walnut watermelon way wheel win window winner wire witness word worker zebra
"""
PLURALS = {
    "child": "children", "person": "people", "man": "men", "woman": "women", "mouse": "mice", "leaf": "leaves",
    "vertex": "vertices", "die": "dice", "goose": "geese", "fish": "fish", "sheep": "sheep",
    "potato": "potatoes", "tomato": "tomatoes", "knife": "knives", "shelf": "shelves",
}  # fmt: skip
AGES = "year day month week"  # "12 years old"
ORDERED = ("pairs", "triples", "quadruples", "quintuples", "tuples")  # "6 ordered pairs" are 6, "6 pairs" may be 12
QUALITIES = set(
    "different distinct possible positive real integer integral valid unique prime lattice whole natural red blue green"
    " yellow black white total".split()
)
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
def _plurals() -> dict[str, str]:
    """Return the plurals of all that is counted, each with its singular."""
    table = {plural: noun for noun, plural in PLURALS.items()}
    for noun in COUNTED.split():
        if noun.endswith("y") and noun[-2] not in "aeiou":
            table[noun[:-1] + "ies"] = noun
        else:
            table[noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")] = noun
    return table


def read(words: str, *, of_one: bool = False) -> str | None:
    r"""Return the unit that these words name, in one spelling for all; "" for "units"; None when it is none.

    What is counted stands in the plural, but for `of_one`: "12 roots" and "1 root" are counted, "12 root" is not.

    >>> read("sq. cm"), read("cm^2"), read("miles per hour"), read("mph"), read("square units"), read("dozen")
    ('cm^2', 'cm^2', 'h^-1 mi^1', 'h^-1 mi^1', '', None)
    """
    words = words.strip()
    if not words or len(words) > MAX_CHARS:
        return None
    counted = _counted(words.rstrip("."), of_one)
    return _measure(words) if counted is None else counted


def compatible(one: str | None, other: str | None) -> bool:
    """Return whether two answers with these units can be the same: a unit that is left out is no other unit."""
    if not one or not other or one == other:
        return True
    return {one, other} in ({"°^1", "°C^1"}, {"°^1", "°F^1"})


def _counted(words: str, of_one: bool) -> str | None:
    """Return the noun of "distinct real solutions" in the singular, None for other words."""
    *before, noun = words.lower().split() or [""]
    singular = _plurals().get(noun)
    if of_one and (noun in COUNTED.split() or noun in PLURALS):
        singular = noun
    if before and before[-1] == "ordered" and noun in ORDERED:
        return noun.removesuffix("s")
    return singular if all(word in QUALITIES for word in before) else None


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
        elif token == "old" and last in AGES.split():
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
