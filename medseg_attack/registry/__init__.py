"""Names to objects and back: `register`, `build("pgd(linf(4/255), steps=40)", "attack")`, `spec`."""

from medseg_attack.registry.grammar import Spec as Spec
from medseg_attack.registry.grammar import parse as parse
from medseg_attack.registry.parts import with_eps as with_eps
from medseg_attack.registry.parts import within as within
from medseg_attack.registry.specs import build as build
from medseg_attack.registry.specs import canonical as canonical
from medseg_attack.registry.specs import leaves_open as leaves_open
from medseg_attack.registry.specs import named as named
from medseg_attack.registry.specs import options as options
from medseg_attack.registry.specs import parse_call as parse_call
from medseg_attack.registry.specs import shown as shown
from medseg_attack.registry.specs import spec as spec
from medseg_attack.registry.specs import spec_of as spec_of
from medseg_attack.registry.specs import with_option as with_option
from medseg_attack.registry.table import Code as Code
from medseg_attack.registry.table import Entry as Entry
from medseg_attack.registry.table import brings_weights as brings_weights
from medseg_attack.registry.table import entry_of as entry_of
from medseg_attack.registry.table import find as find
from medseg_attack.registry.table import names as names
from medseg_attack.registry.table import register as register
