"""Which addresses webhooks may go to, by a table of our own: the same answer on every Python."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final, NamedTuple, TypeAlias, cast
from urllib.parse import urlsplit

from callbackkit.errors import ConfigError, ForbiddenAddressError

__all__ = ["PORTS", "Guard", "host_name"]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

PORTS: Final = frozenset({80, 443, 8080, 8443})
"""Ports that may be dialled, unless the operator named others."""


# Of ``ipaddress`` only the parsing and the comparing are used here. What it calls global changes
# between patch releases, and has had NAT64, multicast and more in it.

# The special-purpose registry of IANA for IPv4 (as of October 2025), whole: also what is reachable
# from everywhere, since nobody takes webhooks there. Then multicast, class E and broadcast.
_SPECIAL_V4: Final = tuple(
    IPv4Network(each)
    for each in (
        "0.0.0.0/8",  # this host; Linux takes 0.0.0.0 for loopback
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # behind the NAT of a carrier; of Tailscale; of Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own, in the middle of public space
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols; metadata of Oracle's cloud
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays, once
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and 255.255.255.255
    )
)
# What IANA gives to hosts, all else being forbidden; and what of that is in its registry, but for
# the tunnels below.
_UNICAST_V6: Final = IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    IPv6Network(each)
    for each in (
        "2001::/23",  # protocols: benchmarks, AMT, AS112, ORCHID, drones
        "2001:db8::/32",  # documentation
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)

# IPv6 that carries IPv4 inside, and is given up: nobody needs it, and it hides where it leads.
_TUNNELS: Final = tuple(
    IPv6Network(each)
    for each in (
        "::/96",  # IPv4-compatible (RFC 4291), and ::, which Linux takes for loopback
        "::ffff:0:0:0/96",  # IPv4-translated (RFC 2765)
        "2001::/32",  # Teredo (RFC 4380)
        "2002::/16",  # 6to4 (RFC 3056)
    )
)
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
# Gateways to IPv4 that are in use: RFC 6052, and RFC 8215, in which a network chooses its own /96.
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))

# Where credentials are handed out to whoever asks. An allowed network that is wider than the entry
# does not open it: who writes "10.0.0.0/8" or "0.0.0.0/0" means his services.
_ONLY_BY_NAME: Final[tuple[Network, ...]] = tuple(
    ip_network(each)
    for each in (
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
        "169.254.0.0/16",
        "169.254.0.23/32",  # Tencent
        "169.254.42.42/32",  # Scaleway
        "169.254.169.254/32",  # AWS, Azure, Google, Oracle, OpenStack, DigitalOcean, Hetzner
        "169.254.170.2/32",  # AWS, of containers
        "169.254.170.23/32",  # AWS, of pods
        "192.0.0.192/32",  # Oracle
        "fd00:42::42/128",  # Scaleway
        "fd00:a9fe:a9fe::1/128",  # Akamai
        "fd00:ec2::/32",  # AWS
        "fd00:ec2::23/128",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",  # Google
        "fe80::/10",
        "fe80::a9fe:a9fe/128",  # OpenStack
    )
)

_NO_ADDRESS: Final = "what is dialled must be an address"
_NOT_PUBLIC: Final = "the address is not public"
_WRONG_PORT: Final = "the port is not allowed"


class Guard:
    """Judges URLs when they are registered and addresses when they are dialled.

    Public addresses may be dialled, at *ports*: those of IPv4, and those of ``2000::/3``, that are
    in no registry of special ones. What lies in *allowed_networks* may be dialled as well, at any
    port, but for this:

    - ``::ffff:10.0.0.1`` is ``10.0.0.1``, for that is what the system dials: an IPv4 network has
      to allow it, and ``::/0`` does not.
    - NAT64 (``64:ff9b::/96``, and a ``/96`` of ``64:ff9b:1::/48``) is for gateways. A network has
      to allow it, and then the IPv4 address inside is judged as if it were dialled itself.
    - 6to4, Teredo and IPv4-compatible addresses are never dialled.
    - Link-local addresses and those where clouds hand out credentials, such as
      ``169.254.169.254``, are not opened by a network around them. Link-local ones have to be
      allowed as such, and the latter each by itself: ``"169.254.169.254/32"``.

    Args:
        allowed_networks: Networks, or single addresses, that may be dialled although they are not
            public, such as ``"10.1.0.0/16"``.
        require_https: Refuse plain HTTP.
        ports: Ports that may be dialled outside of *allowed_networks*; ``None`` for any.

    Raises:
        TypeError: One text or number instead of several; a *require_https* that is no bool.
        ValueError: What is no network, has bits set beyond its prefix, or could never be dialled;
            what is no port.

    Source:
        IANA, "IPv4/IPv6 Special-Purpose Address Registry"; RFC 6890, RFC 8190.
    """

    def __init__(
        self,
        *,
        allowed_networks: Iterable[str | Network | Address] = (),
        require_https: bool = True,
        ports: Collection[int] | None = PORTS,
    ) -> None:
        _check_several("allowed_networks", allowed_networks, "('10.1.0.0/16',)")
        self._allowed = tuple(_network(each) for each in allowed_networks)
        if not isinstance(cast(object, require_https), bool):
            raise TypeError(f"require_https must be True or False, not {require_https!r:.80}")
        self._require_https = require_https
        if ports is not None:
            _check_several("ports", ports, "(443,)")
            ports = frozenset(_port(each) for each in ports)
        self._ports = ports

    def __repr__(self) -> str:
        networks = [str(each) for each in self._allowed]
        ports = None if self._ports is None else sorted(self._ports)
        return (
            f"Guard(allowed_networks={networks}, require_https={self._require_https}, "
            f"ports={ports})"
        )

    def check_url(self, url: str) -> None:
        """Judge a URL without looking its host up: a name is judged by what is dialled.

        Addresses have to be written as they are: ``127.1``, ``0x7f000001`` and ``2130706433``,
        which resolvers take for ``127.0.0.1``, are refused.

        Raises:
            ConfigError: It may never be dialled, or is no URL. The text repeats nothing of it.
        """
        target = _target(url)
        if self._require_https and target.scheme != "https":
            raise _refused("must be https")
        if isinstance(target.host, str):
            reason = self._wrong_with_name(target.host, target.port)
        else:
            reason = self._wrong_with(target.host, target.port)
        if reason is not None:
            raise _refused(reason)

    def check_address(self, host: str, port: int) -> None:
        """Judge what is about to be dialled.

        Args:
            host: An address as text, as sockets have it; a zone (``%eth0``) makes no difference.
            port: The port.

        Raises:
            ForbiddenAddressError: Not there.
        """
        address = _address(host)
        reason = _NO_ADDRESS if address is None else self._wrong_with(address, port)
        if reason is not None:
            raise ForbiddenAddressError(reason)

    # What is wrong with it; None for nothing.

    def _wrong_with(self, address: Address, port: int) -> str | None:
        if _is_within(address, _TUNNELS) and address not in _LOOPBACK:
            return _NOT_PUBLIC
        if self._is_allowed(address):
            inside = _translated(address)
            return None if inside is None else self._wrong_with(inside, port)
        return self._wrong_with_port(port) if _is_public(address) else _NOT_PUBLIC

    def _wrong_with_port(self, port: int) -> str | None:
        return None if self._ports is None or port in self._ports else _WRONG_PORT

    def _wrong_with_name(self, name: str, port: int) -> str | None:
        if name == "localhost" or name.endswith(".localhost"):
            # RFC 6761, section 6.3: it leads to loopback; to which, the resolver says.
            reasons = [self._wrong_with(each, port) for each in _LOOPBACK]
            return None if None in reasons else reasons[0]
        # It may lead into a network in which any port will do.
        return None if self._allowed else self._wrong_with_port(port)

    def _is_allowed(self, address: Address) -> bool:
        return any(address in each and _is_meant(each, address) for each in self._allowed)


def _refused(reason: str) -> ConfigError:
    return ConfigError("webhook_url", reason)


# Addresses.


def _address(text: str) -> Address | None:
    """Return what a socket dials for an address; ``None`` for what is none."""
    # ip_address() takes numbers and packed bytes too.
    if not isinstance(cast(object, text), str):
        return None
    try:
        return _unmapped(ip_address(text))
    except ValueError:
        return None


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address of ``::ffff:0:0/96``; others without their zone."""
    number = int(address)
    if address.version == 6:
        return IPv4Address(number & 0xFFFF_FFFF) if number >> 32 == 0xFFFF else IPv6Address(number)
    return address


def _translated(address: Address) -> Address | None:
    """Return the IPv4 address behind a NAT64 gateway."""
    return IPv4Address(int(address) & 0xFFFF_FFFF) if _is_within(address, _NAT64) else None


def _is_within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in each for each in networks)


def _is_public(address: Address) -> bool:
    if address.version == 4:
        return not _is_within(address, _SPECIAL_V4)
    return address in _UNICAST_V6 and not _is_within(address, _SPECIAL_V6)


def _is_meant(network: Network, address: Address) -> bool:
    """Return whether an allowed network that has an address in it was meant to."""
    if _is_within(address, _NAT64) and network.prefixlen < 96:
        return False
    # Of two networks that have an address in common one lies in the other.
    return all(network.prefixlen >= each.prefixlen for each in _ONLY_BY_NAME if address in each)


# What the operator gives.


def _check_several(name: str, value: object, example: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be several, such as {example}, not {value!r:.80}")


def _port(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65_536:
        raise ValueError(f"ports must be whole numbers from 1 to 65535, not {value!r:.80}")
    return value


def _network(value: object) -> Network:
    """Return an allowed network; one within ``::ffff:0:0/96`` as that of IPv4."""
    text = str(value)
    try:
        if "%" in text:
            raise ValueError
        network, start = ip_network(text, strict=False), ip_interface(text).ip
    except ValueError:
        raise ValueError(
            f"allowed_networks: {value!r:.80} is no network; write one such as '10.1.0.0/16'"
        ) from None
    if start != network.network_address:
        raise ValueError(
            f"allowed_networks: {text!r} has bits set beyond its prefix; "
            f"write {str(network)!r} for all of that network, or '{start}' for the one address"
        )
    return _dialled(network)


def _dialled(network: Network) -> Network:
    number, length = int(network.network_address), network.prefixlen
    if network.version == 4:
        return network
    if number >> 32 == 0xFFFF:
        return IPv4Network((number & 0xFFFF_FFFF, length - 96))
    start = IPv6Address(number)
    if start != _LOOPBACK[1] and any(
        start in each for each in _TUNNELS if length >= each.prefixlen
    ):
        raise ValueError(
            f"allowed_networks: nothing in {str(network)!r} is ever dialled; "
            "write the IPv4 network that it stands for"
        )
    if start in _NAT64[1] and length < 96:
        raise ValueError(
            f"allowed_networks: {str(network)!r} does not say where IPv4 stands in it; "
            "write the /96 of your NAT64 gateway"
        )
    return network


# URLs.

# What urlsplit() would drop, and what others take for "/".
_NOT_IN_URL: Final = re.compile(r"[\x00-\x20\x7f\\]")
_AUTHORITY: Final = re.compile(
    r"(?:\[(?P<literal>[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:@]*))(?::(?P<port>[0-9]{0,5}))?"
)
# RFC 1035, section 2.3.4: up to 253 octets; that labels have up to 63 the codec sees to. With "_",
# which names of internal hosts have.
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
# WHATWG URL, "ends in a number checker": what inet_aton() takes for an address ends like this, and
# no domain does.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

_NO_URL: Final = "must be a URL such as 'https://example.com/hook'"
_NO_HOST: Final = "must have a host name that can be looked up, or an address"
_ODD_ADDRESS: Final = "must have an address written like 192.0.2.1 or [2001:db8::1]"


class _Target(NamedTuple):
    """Where a URL leads to: an address as a socket dials it, or a name in lower-case ASCII."""

    scheme: str
    host: Address | str
    port: int


def _target(url: str) -> _Target:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused(_NO_URL) from None
    if _NOT_IN_URL.search(url) or parts.scheme not in {"http", "https"}:
        raise _refused(_NO_URL)
    if "@" in parts.netloc:
        raise _refused("must not hold credentials; send them in headers")
    found = _AUTHORITY.fullmatch(parts.netloc)
    if found is None:
        raise _refused(_NO_HOST)
    port = int(found["port"] or (443 if parts.scheme == "https" else 80))
    if not 0 < port < 65_536:
        raise _refused("must have a port from 1 to 65535")
    return _Target(parts.scheme, _host(found["literal"], found["name"]), port)


def _host(literal: str | None, name: str) -> Address | str:
    if literal is None:
        name = host_name(name)
        if not _NUMBER.fullmatch(name.rpartition(".")[2]):
            return name
    address = _address(name if literal is None else literal)
    if address is None:
        raise _refused(_ODD_ADDRESS)
    return address


def host_name(text: str) -> str:
    """Return a host name in the form that is looked up, in ASCII and without the dot at its end.

    Raises:
        ConfigError: There is none.
    """
    try:
        # The codec has the Unicode of 2002, which lacks some digits; and is slow with long text.
        text = unicodedata.normalize("NFKC", text) if len(text) < 256 else ""
        name = text.encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    name = name.removesuffix(".")
    if not _NAME.fullmatch(name):
        raise _refused(_NO_HOST)
    return name
