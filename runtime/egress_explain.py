"""Why the egress guard lets a URL through or not, step by step: `xnai egress check URL`.

Asks the policy's own checks in the order in which a fetch asks them, so it cannot disagree with
them; resolves, and connects to nothing.
"""

from dataclasses import dataclass, field

import anyio

from runtime.addresses import Address, carried_ipv4, denied_as, local_name
from runtime.egress_policy import EgressPolicy
from runtime.egress_target import EgressDenied, Target, parse_target

RESOLVE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that the guard looked at. `address` is set if it tells where a name leads."""

    name: str
    detail: str
    address: str | None = None


@dataclass(slots=True)
class Explanation:
    """The steps up to the verdict; `denied` is None when the URL may be fetched.

    A name that does not resolve is not denied: `is_resolved` says that nothing can be connected to.
    """

    steps: list[Step] = field(default_factory=list)
    denied: EgressDenied | None = None
    is_resolved: bool = False

    @property
    def is_allowed(self) -> bool:
        """Whether a fetch would connect."""
        return self.denied is None and self.is_resolved


async def explain(policy: EgressPolicy, url: str) -> Explanation:
    """Walk parse → host and port → addresses; raises nothing that a URL can cause."""
    found = Explanation()
    try:
        await _walk(policy, url, found)
    except EgressDenied as denied:
        found.denied = denied
    except TimeoutError:
        detail = f"the name did not resolve within {RESOLVE_WITHIN_S:g} s"
        found.steps.append(Step("addresses", detail))
    except OSError as error:
        found.steps.append(Step("addresses", f"the name does not resolve: {error}"))
    return found


async def _walk(policy: EgressPolicy, url: str, found: Explanation) -> None:
    target = parse_target(url)
    found.steps.append(Step("parse", f"leads to host {target.host}, port {target.port}"))
    policy.check_target(target)
    found.steps.append(Step("host and port", _about_host(policy, target)))
    with anyio.fail_after(RESOLVE_WITHIN_S):
        addresses = await policy.look_up(target)
    for address in addresses:
        about = f"{address} is {_about_address(policy, address, target)}"
        found.steps.append(Step("address", about, str(address)))
        policy.check_address(address, target)
    found.is_resolved = True


def _about_host(policy: EgressPolicy, target: Target) -> str:
    naming = policy.allowed.naming(target)
    if naming is not None:
        return f"entry {naming!r} names them"
    if isinstance(target.host, str) and local_name(target.host) is not None:
        return "a name of local use, whose addresses must all lie in an allowed network"
    return "nothing against them by themselves"


def _about_address(policy: EgressPolicy, address: Address, target: Target) -> str:
    about = _about_part(policy, address, target)
    carried = (f"{part}, {_about_part(policy, part, target)}" for part in carried_ipv4(address))
    return " and carries ".join((about, *carried))


def _about_part(policy: EgressPolicy, address: Address, target: Target) -> str:
    rule = denied_as(address)
    if rule is None:
        return "this machine's own" if policy.own(address) else "public"
    entry = policy.permits(address, target, rule)
    return f"{rule}, permitted by entry {entry!r}" if entry is not None else f"{rule}, not allowed"
