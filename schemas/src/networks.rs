//! Networks and addresses: from where a request came, and from where an account may be used.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::Error;

/// Networks of one account.
pub const MAX_NETWORKS: usize = 100;

/// Where a request came from, as far as trusted proxies tell. An extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Reads a network, such as `192.0.2.0/24` or `2001:db8::/32`, or one address; what stands behind the prefix is dropped.
///
/// # Errors
/// [`Error::Malformed`].
pub fn parse(text: &str) -> Result<IpNet, Error> {
    let text = text.trim();
    let read =
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical())));
    let network = read.map_err(|_| Error::Malformed(format!("{text:?} is neither a network (CIDR) nor an address")))?;
    Ok(network.trunc())
}

/// Whether one of some networks holds an address. An IPv4 address that is written as IPv6 is the IPv4 address.
pub fn hold(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// Where a request came from: whoever is connected, unless that is a proxy to be trusted; then whom it names in
/// `X-Forwarded-For`, from the right, until one is not trusted. What a client writes there itself stands further left.
pub fn client(peer: IpAddr, forwarded: &[&str], trusted: &[IpNet]) -> IpAddr {
    let mut client = peer.to_canonical();
    let named = forwarded.iter().rev().flat_map(|line| line.rsplit(','));
    for name in named {
        if !hold(trusted, client) {
            break;
        }
        match address(name.trim()) {
            Some(address) => client = address.to_canonical(),
            // Whoever wrote that is not to be trusted with more.
            None => break,
        }
    }
    client
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    text.parse().ok().or_else(with_port).or_else(bracketed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn networks_and_addresses_of_both_kinds() {
        let networks = nets(&["192.0.2.0/24", "2001:db8::/32", "198.51.100.7", " 2001:db9::1 "]);
        for inside in ["192.0.2.255", "::ffff:192.0.2.1", "2001:db8:ffff::1", "198.51.100.7", "2001:db9::1"] {
            assert!(hold(&networks, ip(inside)), "{inside}");
        }
        for outside in ["192.0.3.0", "198.51.100.8", "2001:db7::1", "::1", "2001:db9::2"] {
            assert!(!hold(&networks, ip(outside)), "{outside}");
        }
        assert_eq!(parse("192.0.2.77/24").unwrap().to_string(), "192.0.2.0/24");
        assert_eq!(parse("192.0.2.77").unwrap().to_string(), "192.0.2.77/32");
        for wrong in ["", "192.0.2.0/33", "example.com", "192.0.2", "1.2.3.4/x", "::/129"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        // Everything is a network, too.
        assert!(hold(&nets(&["0.0.0.0/0"]), ip("8.8.8.8")) && !hold(&nets(&["0.0.0.0/0"]), ip("::1")));
    }

    #[test]
    fn only_proxies_that_are_trusted_are_believed() {
        let trusted = nets(&["10.0.0.0/8", "::1"]);
        let told = |peer: &str, lines: &[&str]| client(ip(peer), lines, &trusted).to_string();
        assert_eq!(told("203.0.113.9", &["192.0.2.1"]), "203.0.113.9", "anybody can write that");
        assert_eq!(told("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(told("10.0.0.1", &["192.0.2.1"]), "192.0.2.1");
        assert_eq!(
            told("10.0.0.1", &["6.6.6.6, 192.0.2.1, 10.9.9.9"]),
            "192.0.2.1",
            "what is further left is the client's own"
        );
        assert_eq!(told("10.0.0.1", &["6.6.6.6", "192.0.2.1"]), "192.0.2.1", "several lines are one list");
        assert_eq!(told("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
        assert_eq!(told("10.0.0.1", &["192.0.2.1:4711"]), "192.0.2.1");
        assert_eq!(told("::1", &["[2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(told("::1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(told("::ffff:10.0.0.1", &["::ffff:192.0.2.1"]), "192.0.2.1");
        assert_eq!(told("10.0.0.1", &["192.0.2.1, unknown"]), "10.0.0.1", "nothing is guessed");
        assert_eq!(told("10.0.0.1", &["192.0.2.1,"]), "10.0.0.1");
    }
}
