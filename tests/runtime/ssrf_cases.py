"""Addresses, URLs, answers of resolvers and redirects that must never be followed to a connection.

Data only: test_egress.py walks it through the guard, test_egress_paths.py through the crawler and
the webhooks.
"""

from dataclasses import dataclass

LOOPBACK_SPELLINGS = [
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "127.255.255.254", "127.0.0.1.", "127.1.",
    "2130706433", "2130706433.", "017700000001", "0017700000001", "0x7f000001", "0X7F000001",
    "0x7f.0x0.0x0.0x1", "0x7F.1", "0x7f.0.1", "0177.0.0.1", "0177.0x0.0.1", "0177.1",
    "00177.0.0.01",
    "127.0.0.0x1", "127.0x1", "127.000.000.001", "0x000000007f000001", "0x7f.00.00.01",
    "%31%32%37.0.0.1", "127%2e0%2e0%2e1", "%3127.0.0.1", "%30x7f.1", "127.0.0.%31",
    "１２７.０.０.１", "127。0。0。1", "127．0．0．1", "127｡0｡0｡1", "①②⑦.⓪.⓪.①",
    "⑫7.0.0.1", "１27.1",
    "０x7f000001", "%EF%BC%91%32%37.1", "ⓛ⑫⑦.1",
    "0", "0.0.0.0", "0x0", "00", "0.0", "0.1.2.3", "0x", "0.0.0.0.",
]  # fmt: skip

PRIVATE_IPV4 = [
    "10.0.0.0", "10.1.2.3", "10.255.255.255", "0xa.1", "012.0.0.1", "167772161", "10.1",
    "172.16.0.1", "172.20.30.40", "172.31.255.255", "172.1048577", "0xac100001", "2886729729",
    "192.168.0.1", "192.168.1", "192.168.257", "0xc0.0xa8.0.1", "0300.0250.0.1", "3232235521",
    "192.168.255.255.", "100.64.0.1", "100.127.255.254", "0x64.0x40.0.1", "1681915905",
    "169.254.0.1", "169.254.255.254", "0xa9.0xfe.1.1",
    "169.254.169.254", "169.254.43518", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
    "0xa9.254.0251.254", "169.254.169.254.", "１６９.254.169.254", "169.254.170.2",
    "169.254.170.23",
    "100.100.100.200", "168.63.129.16", "192.0.0.192", "0xa83f8110", "169.254.42.42",
    "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.250", "0xe0000001", "240.0.0.1", "250.1.2.3",
    "255.255.255.255", "0xffffffff", "4294967295", "037777777777",
]  # fmt: skip

IPV6 = [
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::0.0.0.1]", "[::]",
    "[0:0:0:0:0:0:0:0]", "[::127.0.0.1]", "[::7f00:1]", "[::10.0.0.1]", "[::8.8.8.8]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:7F00:0001]", "[0:0:0:0:0:ffff:127.0.0.1]",
    "[0000::ffff:10.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[::ffff:c0a8:101]",
    "[::ffff:0.0.0.0]", "[::ffff:100.64.0.1]", "[::ffff:224.0.0.1]",
    "[::ffff:0:127.0.0.1]", "[::ffff:0:7f00:1]", "[::ffff:0:a00:1]",
    "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::1]", "[64:ff9b:1:7f00:0:100::]", "[64:ff9b:1:a9fe:a9:fe00::]",
    "[2002:7f00:1::]", "[2002:7f00:1::1]", "[2002:a00:1::1]", "[2002:a9fe:a9fe::]",
    "[2002:c0a8:101::1]", "[2002:808:808::1]",
    "[2001::1]", "[2001:0:7f00:1::80ff:fffe]", "[2001:0000:4136:e378:8000:63bf:80ff:fffe]",
    "[fc00::1]", "[fd00::1]", "[fdff:ffff::1]", "[fd00:ec2::254]", "[FD00:EC2::254]",
    "[fd20:ce::254]", "[fe80::1]", "[fe80::a9fe:a9fe]", "[febf::1]", "[fec0::1]",
    "[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%25lo]", "[::1%251]", "[2606:4700::1%25eth0]",
    "[ff02::1]", "[ff0e::1]", "[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[2001:10::1]",
    "[4000::1]", "[1::1]", "[fe80::5efe:7f00:1]", "[2606:4700::5efe:7f00:1]",
    "[2606:4700::200:5efe:a00:1]", "[fd00:ec2::253]", "[fd00:42::42]",
    "[64:ff9b:1::7f00:1]", "[64:ff9b:1:7f:0:1::]", "[64:ff9b:1:0:a:0:100:0]",
    "[::ffff:127.1]", "[::1", "::1", "[1::2::3]", "[12345::]",
]  # fmt: skip

# Names of local use: refused before a resolver is asked, which would look inside for them.
LOCAL_NAMES = [
    "localhost", "LOCALHOST", "localhost.", "a.localhost", "localhost.localdomain", "loc%61lhost",
    "ｌｏｃａｌｈｏｓｔ", "ip6-localhost", "ip6-loopback", "broadcasthost", "metadata",
    "instance-data",
    "kubernetes", "redis", "postgres", "host", "wiki", "printer.local", "metadata.google.internal",
    "METADATA.google.INTERNAL.", "host.docker.internal", "kubernetes.default.svc.cluster.local",
    "router.lan", "nas.home", "nas.home.arpa", "wiki.corp", "wiki.intranet", "db.private",
    "app.test", "gateway.docker.internal", "x.invalid", "xn--bcher-kva", "a。internal", "ⓛocalhost",
]  # fmt: skip

URLS = [
    "file:///etc/passwd", "FILE:///etc/passwd", "ftp://example.com/", "gopher://example.com:70/_x",
    "dict://example.com:11211/stat", "ldap://example.com/", "jar:http://example.com!/", "data:,x",
    "javascript:alert(1)", "ws://example.com/", "unix:///run/docker.sock", "//example.com/", "",
    "example.com", "http:", "http://", "http:///", "http://?x", "http://#x", "https://:443/",
    "http://user@example.com/", "http://user:secret@example.com/", "http://@example.com/",
    "http://example.com@127.0.0.1/", "http://127.0.0.1@example.com/", "http://a:b@c@127.0.0.1/",
    "http://example.com%40127.0.0.1/", "http://127.0.0.1%2f.example.com/", "http://127.0.0.1%00.x/",
    "http://example.com\\@127.0.0.1/", "http://127.0.0.1\\.example.com/", "http:\\\\127.0.0.1/",
    "http://127.0.0.1#@example.com/", "http://127.0.0.1?@example.com/", "http://127.0.0.1:80@x/",
    " http://127.0.0.1/", "http://127.0.0.1/\n", "http://127.0.0.1\t/", "ht\ntp://127.0.0.1/",
    "http://127.0.\n0.1/", "http://exa mple.com/", "http://127.0.0.1\x00/", "http://exam\x7fple.com/",
    "http://example.com:0/", "http://example.com:65536/", "http://example.com:-1/",
    "http://example.com:port/", "http://example.com:22/", "http://example.com:25/",
    "http://example.com:6379/", "https://example.com:5432/", "http://example.com:11211/",
    "http://example.com:2375/", "http://example.com:81/", "http://8.8.8.8:6379/",
    "http://[2606:4700::1111]:25/", "http://256.0.0.1/", "http://1.2.3.4.5/", "http://1.2.3.256/",
    "http://0x1ffffffff/", "http://4294967296/", "http://08.8.8.8/", "http://1..1/", "http://.1/",
    "http://example.com../", "http://.example.com/", "http://-example.com/", "http://exa$mple.com/",
    "http://*.example.com/", "http://xn--/", "http://" + "a" * 64 + ".com/",
    "http://[::1]x/", "http://[2606:4700::1111]evil.example/", "http://a[::1]/", "http://[::1/",
    "http://[2606:4700::1111]:22/", "http://example.com:80:80/", "http://example.com:+80/",
    "http://example.com:８０/", "http://example.com: 80/", "http:/127.0.0.1/", "http:127.0.0.1",
    "https:/\\/127.0.0.1/", "https:///127.0.0.1/", "http://127.0.0.1;x.example/", "hxxp://a.com/",
    "http://example.com\u00a0/", "http://example.com\u2028/", "http://example.com\u3000.x/",
    "http://example.com%2f@127.0.0.1/", "http://example.com%0d%0aHost:x/", "http://exa%20mple.com/",
    "http://example.com%5c127.0.0.1/", "http://example.com,127.0.0.1/", "http://\ud800.com/",
    "http://example.com:2375/_ping", "http://example.com:10250/", "http://example.com:27017/",
    "http://example.com:587/", "http://example.com:445/", "http://[::ffff:127.0.0.1]:6379/",
    "netdoc:///etc/passwd", "view-source:http://127.0.0.1/", "php://filter", "blob:http://a.com/x",
    "http+unix://%2frun%2fdocker.sock/", "about:blank", "mailto:a@example.com", "sftp://a.com/",
    "smb://example.com/x", "tftp://example.com:12346/x", "ssh://example.com/", "netloc", "\\\\a\\b",
    "http://" + "a." * 127 + "com/", "http://%/", "http://%zz/", "http://\u202e.com/",
]  # fmt: skip

CORPUS = {
    "loopback": [f"http://{host}/" for host in LOOPBACK_SPELLINGS],
    "private": [f"http://{host}/" for host in PRIVATE_IPV4],
    "ipv6": [f"http://{host}/" for host in IPV6],
    "local names": [f"http://{host}/" for host in LOCAL_NAMES],
    "urls": URLS,
}

# What a resolver may answer for an innocent name. One bad address among good ones is enough.
ANSWERS = [
    ["127.0.0.1"], ["10.0.0.1"], ["192.168.1.1"], ["172.16.5.5"], ["169.254.169.254"],
    ["100.64.1.1"], ["0.0.0.0"], ["255.255.255.255"], ["224.0.0.251"], ["168.63.129.16"],
    ["::1"], ["::"], ["fe80::1"], ["fe80::1%eth0"], ["fd00::1"], ["::ffff:127.0.0.1"],
    ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["2001::1"], ["ff02::1"], ["fd00:ec2::254"],
    ["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"],
    ["8.8.8.8", "1.1.1.1", "9.9.9.9", "1.0.0.1", "10.0.0.1"],
    ["8.8.8.8", "::ffff:10.0.0.1"], ["2606:4700::1111", "fd00:ec2::254"], ["192.0.0.192"],
    ["64:ff9b:1::a00:1"], ["::ffff:0:a9fe:a9fe"], ["2001:0:7f00:1::1"], ["fe80::a9fe:a9fe%2"],
    ["100.100.100.200"], ["198.18.0.1"], ["192.0.2.1"], ["240.0.0.1"], ["fec0::1"],
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rebinding:
    """A name whose answer changes: `safe` may be connected to by the test's policy, `then` never.

    `fetches` counts the requests of which every one but the last is answered.
    """

    name: str
    answers: tuple[tuple[str, ...], ...]
    fetches: int = 2


SAFE = "127.0.0.1"
INNER = "127.0.0.2"
REBINDINGS = [
    Rebinding("at the second lookup", ((SAFE,), (INNER,))),
    Rebinding("to the metadata service", ((SAFE,), ("169.254.169.254",))),
    Rebinding("to IPv6 loopback", ((SAFE,), ("::1",))),
    Rebinding("to an IPv4-mapped address", ((SAFE,), (f"::ffff:{INNER}",))),
    Rebinding("to the unspecified address", ((SAFE,), ("0.0.0.0",))),
    Rebinding("to a private network", ((SAFE,), ("10.0.0.1",))),
    Rebinding("to both, the safe one first", ((SAFE,), (SAFE, INNER))),
    Rebinding("to both, the safe one last", ((SAFE,), (INNER, SAFE))),
    Rebinding("to both from the start", ((SAFE, INNER),), fetches=1),
    Rebinding("to many, one of them inside", ((SAFE, SAFE, SAFE, SAFE, SAFE, INNER),), fetches=1),
    Rebinding("after three lookups", ((SAFE,), (SAFE,), (SAFE,), (INNER,)), fetches=4),
    Rebinding("to NAT64", ((SAFE,), ("64:ff9b::7f00:2",))),
    Rebinding("to 6to4", ((SAFE,), ("2002:7f00:2::",))),
    Rebinding("to a link-local zone", ((SAFE,), ("fe80::1%lo",))),
    Rebinding("before the first lookup", ((INNER,), (SAFE,)), fetches=1),
]

# Where a server sends who asks it. `{inner}` is a port that listens inside, `{outer}` one outside.
LOCATIONS = [
    "http://127.0.0.2:{inner}/", "http://2130706434:{inner}/", "http://0x7f.2:{inner}/",
    "http://0177.0.0.2:{inner}/", "http://127.2:{inner}/", "http://127.0.0.2.:{inner}/",
    "http://%31%32%37.0.0.2:{inner}/", "//127.0.0.2:{inner}/", "http://[::ffff:127.0.0.2]:{inner}/",
    "http://[::ffff:7f00:2]:{inner}/", "http://[::127.0.0.2]:{inner}/", "http://[::1]:{inner}/",
    "http://[64:ff9b::127.0.0.2]:{inner}/", "http://[2002:7f00:2::]:{inner}/",
    "http://[fe80::1%25lo]:{inner}/", "http://0.0.0.0:{inner}/", "http://0:{inner}/",
    "http://inner.example:{inner}/", "https://inner.example:{inner}/", "//inner.example:{inner}/",
    "http://mixed.example:{inner}/", "http://metadata.example/latest/meta-data/",
    "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/", "http://wiki/",
    "http://localhost:{inner}/", "http://a.localhost:{inner}/", "http://localhost.:{inner}/",
    "http://outer.example:6379/", "http://outer.example:22/", "http://127.0.0.1:11211/",
    "http://outer.example@127.0.0.2:{inner}/", "http://user:secret@outer.example:{outer}/",
    "http://127.0.0.2:{inner}\\@outer.example:{outer}/", "http:\\\\127.0.0.2:{inner}/",
    "/\\127.0.0.2:{inner}/", "\\\\127.0.0.2:{inner}/", "http://127.0.0.2:{inner}#@outer.example/",
    "http://127.0.0.2:{inner}?@outer.example/", " http://127.0.0.2:{inner}/",
    "file:///etc/passwd", "gopher://127.0.0.2:{inner}/_x", "ftp://127.0.0.2:{inner}/",
    "dict://127.0.0.2:{inner}/stat", "javascript:alert(1)", "data:text/html,x", "unix:///run/x.sock",
    "http://outer.example:0/", "http://outer.example:99999/",
]  # fmt: skip
