"""No address that is not public passes, in whatever disguise, unless the operator allows it."""

import ipaddress
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from callbackkit.errors import ConfigError, ForbiddenAddressError
from callbackkit.webhooks.guard import PORTS, Guard

GUARD = Guard()
LAX = Guard(require_https=False)


def passes(guard: Guard, host: str, port: int = 443) -> bool:
    try:
        guard.check_address(host, port)
    except ForbiddenAddressError:
        return False
    return True


def why_not(guard: Guard, url: str) -> str | None:
    """The reason a URL is refused for; ``None`` if it passes."""
    try:
        guard.check_url(url)
    except ConfigError as exc:
        return exc.reason
    return None


# The table. First and last address of each range, then the neighbours that are public.

RANGES_V4 = [
    ("0.0.0.0", "0.255.255.255", None, "1.0.0.0"),
    ("10.0.0.0", "10.255.255.255", "9.255.255.255", "11.0.0.0"),
    ("100.64.0.0", "100.127.255.255", "100.63.255.255", "100.128.0.0"),
    ("127.0.0.0", "127.255.255.255", "126.255.255.255", "128.0.0.0"),
    ("168.63.129.16", "168.63.129.16", "168.63.129.15", "168.63.129.17"),
    ("169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0"),
    ("172.16.0.0", "172.31.255.255", "172.15.255.255", "172.32.0.0"),
    ("192.0.0.0", "192.0.0.255", "191.255.255.255", "192.0.1.0"),
    ("192.0.2.0", "192.0.2.255", "192.0.1.255", "192.0.3.0"),
    ("192.31.196.0", "192.31.196.255", "192.31.195.255", "192.31.197.0"),
    ("192.52.193.0", "192.52.193.255", "192.52.192.255", "192.52.194.0"),
    ("192.88.99.0", "192.88.99.255", "192.88.98.255", "192.88.100.0"),
    ("192.168.0.0", "192.168.255.255", "192.167.255.255", "192.169.0.0"),
    ("192.175.48.0", "192.175.48.255", "192.175.47.255", "192.175.49.0"),
    ("198.18.0.0", "198.19.255.255", "198.17.255.255", "198.20.0.0"),
    ("198.51.100.0", "198.51.100.255", "198.51.99.255", "198.51.101.0"),
    ("203.0.113.0", "203.0.113.255", "203.0.112.255", "203.0.114.0"),
    ("224.0.0.0", "239.255.255.255", "223.255.255.255", None),
    ("240.0.0.0", "255.255.255.255", None, None),
]
RANGES_V6 = [
    ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None, "2000::"),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2000:ffff::", "2001:200::"),
    (
        "2001:db8::",
        "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:db9::",
    ),
    (
        "2002::",
        "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "2003::",
    ),
    (
        "2620:4f:8000::",
        "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
        "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
        "2620:4f:8001::",
    ),
    (
        "3fff::",
        "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:1000::",
    ),
    (
        "4000::",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        None,
    ),
]


@pytest.mark.parametrize(("first", "last", "before", "after"), RANGES_V4 + RANGES_V6)
def test_a_range_is_forbidden_from_its_first_to_its_last_address(
    first: str, last: str, before: str | None, after: str | None
) -> None:
    assert not passes(GUARD, first)
    assert not passes(GUARD, last)
    for neighbour in (before, after):
        assert neighbour is None or passes(GUARD, neighbour)


SPECIAL = """
    0.0.0.0 10.1.2.3 100.100.100.200 127.0.0.1 127.255.255.254 168.63.129.16 169.254.169.254
    169.254.170.2 172.16.0.1 172.31.0.1 192.0.0.8 192.0.0.9 192.0.0.170 192.0.0.192 192.0.2.1
    192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
    255.255.255.255
    :: ::1 ::2 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:169.254.169.254
    ::ffff:0:10.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::8.8.8.8 64:ff9b:1::1 100::1 100:0:0:1::1
    2001::1 2001:1::1 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1 2001:db8::1
    2002:7f00:1:: 2002:808:808::1 2620:4f:8000::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254
    fd20:ce::254 fe80::1 fe80::1%eth0 fe80::a9fe:a9fe%1 fec0::1 ff02::1 ff0e::1
"""
PUBLIC = """
    1.1.1.1 8.8.8.8 9.9.9.9 93.184.215.14 140.82.121.4 172.15.0.1 172.32.0.1 193.0.6.139
    223.255.255.254 ::ffff:8.8.8.8 ::ffff:808:808 2001:4860:4860::8888 2001:200::1 2400:cb00::1
    2606:4700:4700::1111 2620:fe::fe 2a00:1450:4001:80b::200e 2a10::1 2c0f:fb50::1
    2606:4700:4700::1111%eth0
"""


@pytest.mark.parametrize("host", SPECIAL.split())
def test_what_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(ForbiddenAddressError, match="the address is not public"):
        GUARD.check_address(host, 443)


@pytest.mark.parametrize("host", PUBLIC.split())
def test_what_is_public_passes(host: str) -> None:
    GUARD.check_address(host, 443)


@given(st.ip_addresses())
def test_nothing_passes_that_this_python_takes_for_special(
    address: IPv4Address | IPv6Address,
) -> None:
    """One way only: which addresses it takes for global depends on its release."""
    if passes(GUARD, str(address)):
        assert address.is_global
        assert not address.is_multicast


FORBIDDEN_V4 = [
    network
    for first, last, _, _ in RANGES_V4
    for network in ipaddress.summarize_address_range(IPv4Address(first), IPv4Address(last))
]
FORBIDDEN: st.SearchStrategy[Any] = st.sampled_from(FORBIDDEN_V4).flatmap(
    lambda network: st.ip_addresses(network=network)
)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_passes_if_it_is_in_no_range(address: IPv4Address) -> None:
    assert passes(GUARD, str(address)) is not any(address in each for each in FORBIDDEN_V4)


@given(st.ip_addresses(network="2400::/12"), st.sampled_from(sorted(PORTS)))
def test_an_ipv6_address_of_a_registry_passes(address: IPv6Address, port: int) -> None:
    assert passes(GUARD, str(address), port)


# Disguises.


def disguises(address: IPv4Address) -> dict[str, IPv6Address]:
    """IPv6 addresses that lead to an IPv4 one, by what does it."""
    number = int(address)
    nat64_local = 0x64_FF9B_0001 << 80
    return {
        "compatible": IPv6Address(number),
        "translated": IPv6Address(0xFFFF_0000 << 32 | number),
        "nat64": IPv6Address(0x64_FF9B << 96 | number),
        "nat64 of /48": IPv6Address(nat64_local | number >> 16 << 64 | (number & 0xFFFF) << 40),
        "nat64 of /96": IPv6Address(nat64_local | 0xFFFE << 64 | number),
        "6to4": IPv6Address(0x2002 << 112 | number << 80 | 1),
        "teredo": IPv6Address(0x2001_0000 << 96 | 0x0808_0808 << 64 | (number ^ 0xFFFF_FFFF)),
        "teredo server": IPv6Address(0x2001_0000 << 96 | number << 64 | 0xF7F7_F7F7),
    }


def mapped(address: IPv4Address) -> list[str]:
    """An IPv4 address as sockets of both families write it, and as others may."""
    high, low = divmod(int(address), 65_536)
    return [
        f"::ffff:{address}",
        f"::FFFF:{high:x}:{low:x}",
        f"0:0:0:0:0:ffff:{high:04x}:{low:04x}",
        f"0000::ffff:{address}%eth0",
    ]


@given(FORBIDDEN)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
def test_a_forbidden_address_passes_in_no_disguise(address: IPv4Address) -> None:
    hosts = [str(address), *mapped(address), *map(str, disguises(address).values())]
    assert [host for host in hosts if passes(GUARD, host)] == []


@given(FORBIDDEN)
@example(IPv4Address("10.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("0.0.0.1"))  # as an IPv4-compatible one it is loopback
def test_no_ipv6_network_lets_a_forbidden_ipv4_address_pass(address: IPv4Address) -> None:
    guard = Guard(allowed_networks=["::/0", "64:ff9b::/96", "64:ff9b:1:fffe::/96"])
    hosts = [*mapped(address), *map(str, disguises(address).values())]
    assert [host for host in hosts if passes(guard, host) and host != "::1"] == []


@given(st.ip_addresses(v=4))
def test_what_is_given_up_is_never_dialled_even_if_all_is_allowed(address: IPv4Address) -> None:
    guard = Guard(allowed_networks=["::/0", "0.0.0.0/0"], ports=None)
    names = ["compatible", "translated", "6to4", "teredo", "teredo server"]
    hosts = [str(disguises(address)[name]) for name in names]
    assert [host for host in hosts if passes(guard, host) and host != "::1"] == []


@given(st.ip_addresses(v=4), st.sampled_from([443, 5000]))
def test_a_mapped_address_is_judged_as_the_one_that_is_dialled(
    address: IPv4Address, port: int
) -> None:
    guard = Guard(allowed_networks=["10.0.0.0/8", "::/0"])
    for host in mapped(address):
        assert passes(guard, host, port) is passes(guard, str(address), port)


@given(st.ip_addresses(v=4), st.sampled_from([443, 5000]))
@example(IPv4Address("8.8.8.8"), 443)
@example(IPv4Address("8.8.8.8"), 5000)
@example(IPv4Address("10.0.0.1"), 5000)
@example(IPv4Address("192.168.0.1"), 443)
def test_behind_a_gateway_counts_the_address_inside(address: IPv4Address, port: int) -> None:
    guard = Guard(allowed_networks=["10.0.0.0/8", "64:ff9b::/96", "64:ff9b:1:fffe::/96"])
    for name in ("nat64", "nat64 of /96"):
        host = str(disguises(address)[name])
        assert passes(guard, host, port) is passes(guard, str(address), port)


@pytest.mark.parametrize("wide", ["::/0", "64:ff9b::/95", "64:ff9b::/32", "64:ff9b::/47"])
def test_only_a_network_of_its_own_allows_a_gateway(wide: str) -> None:
    guard = Guard(allowed_networks=[wide])
    assert not passes(guard, "64:ff9b::8.8.8.8")
    assert not passes(guard, "64:ff9b:1:fffe::8.8.8.8")


# What the operator allows.


def test_what_is_allowed_may_be_dialled_at_any_port() -> None:
    guard = Guard(allowed_networks=["10.1.0.0/16", "fd12:3456::/32", "192.168.7.7"])
    for host in ("10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3", "fd12:3456::1", "192.168.7.7"):
        assert passes(guard, host, 5000)
    for host in ("10.0.255.255", "10.2.0.0", "fd12:3457::1", "192.168.7.8", "127.0.0.1"):
        assert not passes(guard, host, 443)


def test_a_zone_makes_no_difference() -> None:
    guard = Guard(allowed_networks=["::1", "fe80::/10"])
    for host in ("::1", "::1%lo", "fe80::1", "fe80::1%eth0", "fe80::1%2"):
        assert passes(guard, host)
    for host in ("fe80::a9fe:a9fe", "fe80::a9fe:a9fe%eth0", "fd00::1%eth0", "64:ff9b::1%lo"):
        assert not passes(guard, host)


def test_an_allowed_network_opens_no_other_port_elsewhere() -> None:
    with pytest.raises(ForbiddenAddressError, match="the port is not allowed"):
        Guard(allowed_networks=["10.0.0.0/8"]).check_address("8.8.8.8", 5000)


@pytest.mark.parametrize(
    ("text", "thing"),
    [
        ("10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("fd00:1::/32", IPv6Network("fd00:1::/32")),
        ("10.0.0.1", IPv4Address("10.0.0.1")),
        ("fd00:1::1", IPv6Address("fd00:1::1")),
        ("10.0.0.0/255.0.0.0", IPv4Network("10.0.0.0/8")),
        ("::ffff:10.0.0.0/104", IPv4Network("10.0.0.0/8")),
        ("::ffff:10.0.0.1", IPv4Network("10.0.0.1/32")),
        ("::ffff:0:0/96", IPv4Network("0.0.0.0/0")),
    ],
)
def test_networks_are_text_or_objects(text: str, thing: IPv4Network | IPv6Address) -> None:
    one, other = Guard(allowed_networks=[text]), Guard(allowed_networks=iter([thing]))
    assert repr(one) == repr(other)
    for host in ("10.0.0.1", "10.0.0.2", "fd00:1::1", "fd00:1::2", "127.0.0.1"):
        assert passes(one, host) is passes(other, host)


KEEPERS = """
    100.100.100.200 168.63.129.16 169.254.0.23 169.254.42.42 169.254.169.254 169.254.170.2
    169.254.170.23 192.0.0.192 fd00:42::42 fd00:a9fe:a9fe::1 fd00:ec2::23 fd00:ec2::254 fd20:ce::254
    fe80::a9fe:a9fe
"""


@pytest.mark.parametrize("host", KEEPERS.split())
def test_where_credentials_are_handed_out_is_opened_only_by_name(host: str) -> None:
    bits = ipaddress.ip_address(host).max_prefixlen
    for length in range(bits):
        wide = str(ipaddress.ip_network(f"{host}/{length}", strict=False))
        assert not passes(Guard(allowed_networks=[wide], ports=None), host), wide
    assert passes(Guard(allowed_networks=[host]), host)
    assert passes(Guard(allowed_networks=["::/0", "0.0.0.0/0", f"{host}/{bits}"]), host)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("169.254.1.1", "169.254.0.0/16"),
        ("fe80::1", "fe80::/10"),
        ("fd00:ec2::253", "fd00:ec2::/32"),
    ],
)
def test_link_local_addresses_are_opened_only_as_such(host: str, own: str) -> None:
    wide = str(ipaddress.ip_network(own).supernet())
    assert not passes(Guard(allowed_networks=["::/0", "0.0.0.0/0", wide]), host)
    assert passes(Guard(allowed_networks=[own]), host, 5000)


def test_whoever_allows_all_gets_all_the_rest() -> None:
    guard = Guard(allowed_networks=["0.0.0.0/0", "::/0"])
    for host in ("127.0.0.1", "10.0.0.1", "8.8.8.8", "::1", "fd00::1", "2606:4700::1", "4000::1"):
        assert passes(guard, host, 5000)


# What the operator may not write.


@pytest.mark.parametrize(
    "value", ["10.0.0.0/8", b"10.0.0.0/8", 10, None, IPv4Address("10.0.0.1")], ids=repr
)
def test_one_network_instead_of_several_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"allowed_networks must be several, such as"):
        Guard(allowed_networks=value)  # type: ignore[arg-type]  # the caller's mistake


@pytest.mark.parametrize(
    "value",
    ["", "internal", "10.0.0.0/33", "10/8", "010.0.0.0/8", " 10.0.0.0/8", "10.0.0.0/8/8",
     "fe80::%eth0/64", "fd00::/129", "[::1]", "10.0.0.1:80", 10, None, b"\x7f\0\0\1",
     ("10.0.0.0", 8), IPv6Address("fe80::1%eth0")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_network_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^allowed_networks: .* is no network; write one such"):
        Guard(allowed_networks=[value])  # type: ignore[list-item]  # the caller's mistake


def test_bits_beyond_the_prefix_are_refused_with_the_remedy() -> None:
    words = r"'10\.1\.2\.3/8' has bits set beyond its prefix; write '10\.0\.0\.0/8' .*'10\.1\.2\.3'"
    with pytest.raises(ValueError, match=words):
        Guard(allowed_networks=["10.1.2.3/8"])
    with pytest.raises(ValueError, match=r"write 'fd00::/8' for all .*'fd00::1'"):
        Guard(allowed_networks=["fd00::1/8"])


@pytest.mark.parametrize(
    "network",
    ["::/96", "::", "::10.0.0.0/104", "::2", "::/127", "::ffff:0:0:0/96", "2001::/32", "2001::1",
     "2002::/16", "2002:a00::/24", "2002:a00:1::1"],
)  # fmt: skip
def test_a_network_that_would_never_be_dialled_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"is ever dialled; write the IPv4 network"):
        Guard(allowed_networks=[network])


@pytest.mark.parametrize("network", ["64:ff9b:1::/48", "64:ff9b:1:8000::/49", "64:ff9b:1::/95"])
def test_a_gateway_is_named_by_its_96(network: str) -> None:
    with pytest.raises(ValueError, match=r"write the /96 of your NAT64 gateway"):
        Guard(allowed_networks=[network])


@pytest.mark.parametrize("value", [None, 0, 1, "no", ()], ids=repr)
def test_https_is_required_or_not(value: object) -> None:
    """What is neither, as a setting that is not there, is not taken for no."""
    with pytest.raises(TypeError, match=r"require_https must be True or False, not "):
        Guard(require_https=value)  # type: ignore[arg-type]  # the caller's mistake


@pytest.mark.parametrize("ports", ["443", b"443", 443], ids=repr)
def test_one_port_instead_of_several_is_refused(ports: object) -> None:
    with pytest.raises(TypeError, match=r"ports must be several, such as \(443,\)"):
        Guard(ports=ports)  # type: ignore[arg-type]  # the caller's mistake


@pytest.mark.parametrize("port", [0, -1, 65_536, True, "443", 443.0, None], ids=repr)
def test_what_is_no_port_is_refused(port: object) -> None:
    with pytest.raises(ValueError, match=r"ports must be whole numbers from 1 to 65535, not"):
        Guard(ports=[port])  # type: ignore[list-item]  # the caller's mistake


def test_what_is_allowed_is_read_once() -> None:
    networks, ports = ["10.0.0.0/8"], {443}
    guard = Guard(allowed_networks=networks, ports=ports)
    networks.append("127.0.0.0/8")
    ports.add(22)
    assert not passes(guard, "127.0.0.1")
    assert not passes(guard, "8.8.8.8", 22)


def test_the_repr_shows_what_is_allowed() -> None:
    guard = Guard(allowed_networks=["10.0.0.0/8"], require_https=False, ports=(8443, 443))
    assert repr(guard) == (
        "Guard(allowed_networks=['10.0.0.0/8'], require_https=False, ports=[443, 8443])"
    )
    assert "ports=None" in repr(Guard(ports=None))


# Dialling.


@pytest.mark.parametrize("port", sorted(PORTS))
def test_these_ports_may_be_dialled(port: int) -> None:
    GUARD.check_address("8.8.8.8", port)


@pytest.mark.parametrize("port", [1, 22, 25, 79, 81, 442, 444, 3306, 6379, 8000, 8444, 65_535])
def test_no_other_port_may_be_dialled(port: int) -> None:
    with pytest.raises(ForbiddenAddressError, match="the port is not allowed"):
        GUARD.check_address("8.8.8.8", port)
    Guard(ports=None).check_address("8.8.8.8", port)
    Guard(ports=[port]).check_address("8.8.8.8", port)


def test_an_operator_may_leave_allowed_networks_only() -> None:
    guard = Guard(ports=(), allowed_networks=["10.0.0.0/8"])
    assert passes(guard, "10.0.0.1")
    assert not passes(guard, "8.8.8.8")


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "example.com", "8.8.8", "8.8.8.8.", "8.8.8.8 ", "08.8.8.8", "0x8.8.8.8",
     "134744072", "8.8.8.8%eth0", "8.8.8.8:443", "[2606:4700::1]", "2606:4700::1%", "2606:4700::g",
     "2606:4700::1%a%b", "\uff18.8.8.8", "8.8.8.8\0", "/run/app.sock", 134_744_072,
     b"\x08\x08\x08\x08", None, IPv4Address("8.8.8.8")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_address_is_not_dialled(host: object) -> None:
    with pytest.raises(ForbiddenAddressError, match="what is dialled must be an address"):
        Guard(ports=None).check_address(host, 443)  # type: ignore[arg-type]  # the point of it


@given(st.text())
def test_an_address_is_refused_with_one_kind_of_error(host: str) -> None:
    passes(GUARD, host)


# Registration.

NO_URL = "must be a URL such as 'https://example.com/hook'"
NO_HOST = "must have a host name that can be looked up, or an address"
ODD = "must have an address written like 192.0.2.1 or [2001:db8::1]"
NOT_PUBLIC = "the address is not public"


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook", "HTTPS://EXAMPLE.COM", "https://example.com:8443/?a=b",
     "https://example.com:/x", "https://example.com./x", "https://my_host.internal/", "https://a/",
     "https://cafe.de/", "https://dead.beef/", "https://123.example/", "https://0x7f.example/",
     "https://db.2nd/", "https://0xg/",
     "https://1.2.3.4.example/", "https://xn--bcher-kva.example/", "https://bücher.example/",
     "https://例え.テスト/", "https://😀.example/", "https://notlocalhost/", "https://localhost.example/",
     "https://8.8.8.8/", "https://8.8.8.8./", "https://[2606:4700:4700::1111]:443/",
     "https://[::ffff:8.8.8.8]/", "https://" + ".".join(["a" * 50] * 4 + ["a" * 49]) + "/"],
)  # fmt: skip
def test_a_url_passes(url: str) -> None:
    assert why_not(GUARD, url) is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        # No URL, or none of ours.
        ("", NO_URL),
        ("example.com", NO_URL),
        ("//example.com/", NO_URL),
        ("ftp://example.com/", NO_URL),
        ("file:///etc/passwd", NO_URL),
        ("unix:///run/app.sock", NO_URL),
        ("https://example.com/ x", NO_URL),
        ("https://exam\tple.com/", NO_URL),
        ("\x00https://example.com/", NO_URL),
        ("https://example.com/\x7f", NO_URL),
        ("https://example.com\\@127.0.0.1/", NO_URL),
        ("https://example℀.com/", NO_URL),  # holds a "/" once it is normalised
        # A host that nobody can look up.
        ("https:///hook", NO_HOST),
        ("https://:443/", NO_HOST),
        ("https://.../", NO_HOST),
        ("https://a..b/", NO_HOST),
        ("https://.a/", NO_HOST),
        ("https://a../", NO_HOST),
        ("https://%31%32%37.0.0.1/", NO_HOST),
        ("https://exa%6dple.com/", NO_HOST),
        ("https://ex*mple.com/", NO_HOST),
        ("https://a,b/", NO_HOST),
        ("https://" + "a" * 64 + ".example/", NO_HOST),
        ("https://" + ".".join(["a" * 50] * 5) + "/", NO_HOST),
        ("https://" + "é" * 64 + ".example/", NO_HOST),
        ("https://" + "\u00ad" * 256 + "example.com/", NO_HOST),
        ("https://\u200e/", NO_HOST),
        ("https://\u0627a\u0627/", NO_HOST),  # right to left and left to right in one label
        ("https://\ud800.example/", NO_HOST),
        ("https://example.com:65536/", "must have a port from 1 to 65535"),
        ("https://example.com:0/", "must have a port from 1 to 65535"),
        ("https://example.com:000443/", NO_HOST),
        ("https://example.com:+443/", NO_HOST),
        ("https://example.com:\uff14\uff14\uff13/", NO_HOST),
        ("https://::1/", NO_HOST),
        ("https://user:pass@example.com/", "must not hold credentials; send them in headers"),
        ("https://example.com@127.0.0.1/", "must not hold credentials; send them in headers"),
        # Addresses in forms that only some take for one.
        ("https://127.1/", ODD),
        ("https://0/", ODD),
        ("https://2130706433/", ODD),
        ("https://0x7f000001/", ODD),
        ("https://0X7F.0.0.1/", ODD),
        ("https://0x7f.0.0.0x1/", ODD),
        ("https://0177.0.0.1/", ODD),
        ("https://127.0.0.01/", ODD),
        ("https://017700000001/", ODD),
        ("https://8.8.8.8.8/", ODD),
        ("https://8.8.8.256/", ODD),
        ("https://1.0x/", ODD),
        ("https://example.1/", ODD),
        ("https://[1::2::3]/", None),
        ("https://[127.0.0.1]/", None),
        ("https://[v1.fe80]/", None),
        ("https://[fe80::1%25eth0]/", None),
        ("https://[fe80::1%eth0]/", None),
        ("https://[::1/", None),
        ("https://x[::1]/", None),
        ("https://[::1]x/", None),
        # Addresses that are not public, as they are and in disguise.
        ("https://127.0.0.1/", NOT_PUBLIC),
        ("https://127.0.0.1./", NOT_PUBLIC),
        ("https://127.0.0.1:443/", NOT_PUBLIC),
        ("https://169.254.169.254/latest/meta-data/", NOT_PUBLIC),
        ("https://168.63.129.16/", NOT_PUBLIC),
        ("https://\uff11\uff12\uff17.\uff10.\uff10.\uff11/", NOT_PUBLIC),
        ("https://127。0。0。1/", NOT_PUBLIC),
        ("https://127\uff0e0｡0\uff0e1/", NOT_PUBLIC),
        ("https://①②⑦.0.0.①/", NOT_PUBLIC),
        ("https://\U0001fbf1\U0001fbf2\U0001fbf7.0.0.1/", NOT_PUBLIC),  # digits of Unicode 13
        ("https://12\u00ad7.0.0.1/", NOT_PUBLIC),
        ("https://[::1]/", NOT_PUBLIC),
        ("https://[::]/", NOT_PUBLIC),
        ("https://[0:0:0:0:0:0:0:1]:8443/", NOT_PUBLIC),
        ("https://[::ffff:127.0.0.1]/", NOT_PUBLIC),
        ("https://[::FFFF:7F00:1]/", NOT_PUBLIC),
        ("https://[::127.0.0.1]/", NOT_PUBLIC),
        ("https://[64:ff9b::a9fe:a9fe]/", NOT_PUBLIC),
        ("https://[2002:7f00:1::]/", NOT_PUBLIC),
        ("https://localhost/", NOT_PUBLIC),
        ("https://LOCALHOST./", NOT_PUBLIC),
        ("https://\uff4cocalhost/", NOT_PUBLIC),
        ("https://app.localhost/", NOT_PUBLIC),
        # Ports, where all of them can be known.
        ("https://example.com:22/", "the port is not allowed"),
        ("https://8.8.8.8:6379/", "the port is not allowed"),
    ],
)
def test_a_url_is_refused(url: str, reason: str | None) -> None:
    """For brackets the reason depends on the release of Python, which looks into them first."""
    assert why_not(GUARD, url) in ({NO_URL, NO_HOST, ODD} if reason is None else {reason})


def test_plain_http_has_to_be_asked_for() -> None:
    assert why_not(GUARD, "http://example.com/") == "must be https"
    assert why_not(LAX, "http://example.com/") is None
    assert why_not(LAX, "http://example.com:443/") is None
    assert why_not(LAX, "ftp://example.com/") == NO_URL


def test_the_port_of_a_scheme_is_judged_too() -> None:
    guard = Guard(require_https=False, ports=(8080,))
    assert why_not(guard, "http://example.com/") == "the port is not allowed"
    assert why_not(guard, "https://example.com/") == "the port is not allowed"
    assert why_not(guard, "http://example.com:8080/") is None
    only_80 = Guard(require_https=False, ports=(80,))
    assert why_not(only_80, "http://8.8.8.8/") is None
    assert why_not(only_80, "https://8.8.8.8/") == "the port is not allowed"


def test_a_name_may_lead_into_an_allowed_network_at_any_port() -> None:
    guard = Guard(allowed_networks=["10.0.0.0/8"])
    assert why_not(guard, "https://receiver.internal:5000/") is None
    assert why_not(guard, "https://10.0.0.1:5000/") is None
    assert why_not(guard, "https://[::ffff:10.0.0.1]:5000/") is None
    assert why_not(guard, "https://8.8.8.8:5000/") == "the port is not allowed"
    assert why_not(Guard(ports=None), "https://receiver.example:5000/") is None


@pytest.mark.parametrize("network", ["127.0.0.0/8", "::1"])
def test_localhost_passes_when_loopback_is_allowed(network: str) -> None:
    guard = Guard(allowed_networks=[network])
    assert why_not(guard, "https://localhost:5000/") is None
    assert why_not(guard, "https://app.localhost:5000/") is None


# Text that a resolver takes for an address. ``inet_aton()`` is what getaddrinfo() of glibc asks.

RADIX = st.sampled_from(["{}", "0{:o}", "000{:o}", "0x{:x}", "0X{:X}", "0x00{:x}"])


@st.composite
def written_oddly(draw: st.DrawFn) -> tuple[str, IPv4Address]:
    """A forbidden address in one to four parts, each in some radix."""
    address = draw(FORBIDDEN)
    octets = list(address.packed)
    count = draw(st.integers(1, 4))
    parts = [*octets[: count - 1], int.from_bytes(octets[count - 1 :], "big")]
    return ".".join(draw(RADIX).format(part) for part in parts), address


@given(written_oddly())
@example(("0x7f.1", IPv4Address("127.0.0.1")))
@example(("017700000001", IPv4Address("127.0.0.1")))
@example(("0xa9fea9fe", IPv4Address("169.254.169.254")))
def test_what_a_resolver_takes_for_a_forbidden_address_passes_nowhere(
    odd: tuple[str, IPv4Address],
) -> None:
    text, address = odd
    assert socket.inet_aton(text) == address.packed
    assert why_not(LAX, f"http://{text}/") in {ODD, NOT_PUBLIC}
    assert not passes(GUARD, socket.inet_ntoa(socket.inet_aton(text)))
    assert not passes(GUARD, text)


NUMERIC = st.text(
    "0123456789abcdefxX.:%[]-_。\uff0e｡\uff11\uff17①②⑦\u00ad", min_size=1, max_size=24
)


@given(NUMERIC | written_oddly().map(lambda odd: odd[0]))
@example("127.0.0.1")
@example("0x7f.1")
def test_a_host_that_passes_is_an_address_to_no_resolver_but_to_the_guard(host: str) -> None:
    if why_not(LAX, f"http://{host}/") is not None:
        return
    try:
        found = socket.getaddrinfo(host, 80, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return
    assert all(passes(GUARD, str(address[0]), 80) for *_, address in found)


@given(FORBIDDEN)
def test_an_address_is_judged_alike_in_a_url_and_when_dialled(address: IPv4Address) -> None:
    hosts = [str(address), *(f"[{each}]" for each in disguises(address).values())]
    assert {why_not(LAX, f"http://{host}/") for host in hosts} == {NOT_PUBLIC}


# Whatever it is.


@given(
    st.text()
    | st.builds("http{}://{}".format, st.sampled_from(["", "s"]), st.text(max_size=40))
    | st.builds("https://{}:{}/{}".format, st.text(max_size=20), st.integers(), st.text())
)
@example("https://[")
@example("https://\udfff/")
@example("https://[::1]:" + "9" * 5_000)
def test_any_text_passes_or_is_refused_with_a_config_error(url: str) -> None:
    why_not(GUARD, url)
    why_not(LAX, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://hunter2.example/",
        "https://user:hunter2@example.com/",
        "https://127.0.0.1/hunter2?token=hunter2",
        "https://hunter2.localhost/",
        "https://[hunter2]/",
        "https://hunter2..example/",
        "https://example.com:hunter2/",
        "https://example.com:22/hunter2",
        "hunter2://example.com/",
        "https://hunter2℀/",
        "https://hunter2.1/",
    ],
)
def test_a_refusal_repeats_nothing_of_the_url(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GUARD.check_url(url)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    assert caught.value.field == "webhook_url"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_refusal_when_dialling_does_not_repeat_the_address() -> None:
    for host, port in (("10.11.12.13", 443), ("8.8.8.8", 2222), ("hunter2", 443)):
        with pytest.raises(ForbiddenAddressError) as caught:
            GUARD.check_address(host, port)
        assert host not in str(caught.value)
        assert str(port) not in str(caught.value)
