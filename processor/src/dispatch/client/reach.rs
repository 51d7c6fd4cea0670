//! Where webhooks may be posted to: public addresses on ordinary ports, unless the settings say otherwise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

/// What may be posted to.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    /// `http://` too.
    pub allow_http: bool,
    /// Private addresses that may be reached none the less.
    pub allow_private_networks: Vec<IpNet>,
    /// Ports; empty: 80, 443, and those from 1024 on.
    pub ports: Vec<u16>,
}

impl Reach {
    /// Whether an address may be connected to.
    pub fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.allow_private_networks.iter().any(|network| network.contains(&address))
    }

    fn allows_port(&self, port: u16) -> bool {
        if self.ports.is_empty() { matches!(port, 80 | 443 | 1024..) } else { self.ports.contains(&port) }
    }

    /// What can be told from a URL alone.
    ///
    /// # Errors
    /// Why it may not be posted to, for people. Names are checked when they are resolved; literals, in any spelling, are
    /// normalised by the parser (WHATWG URL, "IPv4 parser").
    pub fn check(&self, url: &Url) -> Result<(), String> {
        if url.scheme() != "https" && !(url.scheme() == "http" && self.allow_http) {
            return Err(format!("{}:// is not allowed", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("the URL holds credentials".into());
        }
        let port = url.port_or_known_default().unwrap_or_default();
        if !self.allows_port(port) {
            return Err(format!("port {port} is not allowed"));
        }
        let literal = match url.host() {
            None => return Err("the URL has no host".into()),
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
        };
        match literal {
            Some(address) if !self.allows(address) => Err(format!("{address} is not a public address")),
            _ => Ok(()),
        }
    }
}

/// Whether an address is of the public Internet (IANA's special-purpose registries).
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only global unicast, less what embeds an IPv4 address or documents.
    let global = segments[0] & 0xe000 == 0x2000;
    let teredo_orchid_or_benchmark = segments[0] == 0x2001 && segments[1] < 0x200;
    let documentation =
        (segments[0] == 0x2001 && segments[1] == 0xdb8) || (segments[0] == 0x3fff && segments[1] < 0x1000);
    let six_to_four = segments[0] == 0x2002;
    global && !teredo_orchid_or_benchmark && !documentation && !six_to_four
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hosts of URLs that lead where nobody from outside has any business, in every spelling that a parser takes.
    const INSIDE: &[&str] = &[
        // Loopback: dotted, short, decimal, octal, hexadecimal, mixed, with a dot at the end, percent-encoded, full-width.
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "127.255.255.254",
        "2130706433",
        "0x7f000001",
        "0X7F.0.0.1",
        "017700000001",
        "0177.0.0.1",
        "0177.0x0.0.1",
        "0x7f.1",
        "127.0.0.1.",
        "%31%32%37.0.0.1",
        "１２７.０.０.１",
        "①②⑦.⓪.⓪.①",
        "127。0。0。1",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[0000:0000:0000:0000:0000:0000:0000:0001]",
        // IPv4 inside IPv6: mapped, compatible, NAT64, its local prefix, 6to4, Teredo, translated.
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[0:0:0:0:0:ffff:10.0.0.1]",
        "[::127.0.0.1]",
        "[::7f00:1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a00:1]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2002:a00:1::1]",
        "[2001::1]",
        "[2001:0:53aa:64c::1]",
        "[::ffff:0:127.0.0.1]",
        // Private, in several spellings.
        "10.0.0.1",
        "10.1",
        "167772161",
        "0xa000001",
        "012.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "0xc0.0xa8.0x0.0x1",
        "192.168.257",
        "3232235521",
        // Carrier-grade NAT, link-local and metadata services.
        "100.64.0.1",
        "100.127.255.255",
        "169.254.0.1",
        "169.254.169.254",
        "0xA9FEA9FE",
        "0251.0376.0251.0376",
        "2852039166",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fe80::a9fe:a9fe]",
        // Unspecified, this network, broadcast, class E.
        "0.0.0.0",
        "0",
        "0x0",
        "[::]",
        "0.1.2.3",
        "255.255.255.255",
        "4294967295",
        "240.0.0.1",
        // Multicast, benchmarking, documentation, protocol assignments, relays.
        "224.0.0.1",
        "239.255.255.250",
        "198.18.0.1",
        "198.19.255.255",
        "192.0.2.1",
        "198.51.100.7",
        "203.0.113.5",
        "192.0.0.8",
        "192.88.99.1",
        "[ff02::1]",
        "[ff0e::1]",
        "[2001:2::1]",
        "[2001:20::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[100::1]",
        // Unique local, site-local.
        "[fc00::1]",
        "[fd12:3456:789a::1]",
        "[fec0::1]",
        "[5f00::1]",
    ];

    #[test]
    fn no_spelling_of_an_inner_address_is_within_reach() {
        let reach = Reach { allow_http: true, ..Reach::default() };
        assert!(INSIDE.len() >= 60);
        for host in INSIDE {
            for url in [format!("https://{host}/hook"), format!("http://{host}:8080/"), format!("HTTPS://{host}?q#f")] {
                let Ok(url) = Url::parse(&url) else { continue };
                let refused = reach.check(&url).unwrap_err();
                assert!(refused.contains("not a public address"), "{url}: {refused}");
            }
            // Every one of them is a URL, so that none passes for want of being one.
            assert!(Url::parse(&format!("https://{host}/hook")).is_ok(), "{host}");
        }
        for host in ["1.1.1.1", "93.184.216.34", "8.8.8.8", "[2606:4700::1111]", "[::ffff:8.8.8.8]", "example.com"] {
            reach.check(&Url::parse(&format!("https://{host}/")).unwrap()).unwrap();
        }
    }

    #[test]
    fn schemes_ports_and_credentials_are_limited() {
        let check = |reach: &Reach, url: &str| reach.check(&Url::parse(url).unwrap());
        let usual = Reach::default();
        for url in ["http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com:70/"] {
            assert!(check(&usual, url).unwrap_err().contains("not allowed"), "{url}");
        }
        for port in [22, 25, 110, 111, 139, 445, 587, 1023] {
            assert!(check(&usual, &format!("https://example.com:{port}/")).unwrap_err().contains("port"));
        }
        for port in [80, 443, 1024, 8443, 65535] {
            check(&usual, &format!("https://example.com:{port}/")).unwrap();
        }
        let narrow = Reach { ports: vec![443], ..Reach::default() };
        check(&narrow, "https://example.com/").unwrap();
        assert!(check(&narrow, "https://example.com:8443/").is_err());
        for url in ["https://user@example.com/", "https://:pass@example.com/", "https://a:b@127.0.0.1/"] {
            assert!(check(&usual, url).unwrap_err().contains("credentials"));
        }
    }

    #[test]
    fn networks_that_are_listed_are_within_reach() {
        let reach = Reach { allow_private_networks: vec!["127.0.0.0/8".parse().unwrap()], ..Reach::default() };
        assert!(reach.allows("127.0.0.1".parse().unwrap()) && reach.allows("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!reach.allows("10.0.0.1".parse().unwrap()) && !reach.allows("::1".parse().unwrap()));
    }
}
