//! Prefixes: parse, refuse, normalise, compare. Pure; no IO.
//!
//! The gateway checks nothing of what it is given as a trusted proxy: `not-an-ip` is accepted and means nothing,
//! `0.0.0.0/0` is accepted and trusts the world (measured on openclaw 2026.9.6). So every address that this
//! program sends there goes through [`Prefix::parse`] and [`Limits::check`] first.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use thiserror::Error;

#[cfg(test)]
mod tests;

/// A network prefix that may be trusted: no host bits, IPv4-mapped IPv6 unmapped, no special-purpose range.
///
/// Ordered by family, then address, then length, so that lists of prefixes are the same in every run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

/// Why a text is not a prefix that may be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Neither an address nor a prefix.
    #[error("{0:?} is neither an IP address nor a CIDR prefix")]
    NotAnAddress(String),
    /// Bits are set to the right of the prefix length: probably a typing error, and its meaning is unclear.
    #[error("{given} has host bits set: write {network} for the network, or {address} for the one address")]
    HostBits {
        /// What was written.
        given: String,
        /// The network that contains it.
        network: String,
        /// The single address.
        address: String,
    },
    /// `0.0.0.0` or `::`, or a prefix that starts there (such as `0.0.0.0/0`).
    #[error("{0} holds the unspecified address: it would trust everybody")]
    Unspecified(String),
    /// Loopback: every process on the gateway's host, and every port-forward, has this address.
    #[error("{0} overlaps loopback: every local process and every port-forward comes from there")]
    Loopback(String),
    /// Link-local addresses are not unique and hold cloud metadata services.
    #[error("{0} overlaps link-local addresses")]
    LinkLocal(String),
    /// Multicast addresses are never a source.
    #[error("{0} overlaps multicast addresses")]
    Multicast(String),
    /// Wider than the ceiling.
    #[error(
        "{prefix} is wider than /{ceiling}: it would trust far more than proxies; narrow it, or raise spec.proxies.limits"
    )]
    TooWide {
        /// The refused prefix.
        prefix: String,
        /// The widest length that is allowed for this family.
        ceiling: u8,
    },
}

impl Refusal {
    /// The reason constant, as it stands in `status.withheld[].reason` and in `plan -o json`.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotAnAddress(_) => "NotAnAddress",
            Self::HostBits { .. } => "HostBits",
            Self::Unspecified(_) => "Unspecified",
            Self::Loopback(_) => "Loopback",
            Self::LinkLocal(_) => "LinkLocal",
            Self::Multicast(_) => "Multicast",
            Self::TooWide { .. } => "TooWide",
        }
    }
}

/// `::ffff:a.b.c.d/(96+n)` means `a.b.c.d/n`. A mapped prefix shorter than 96 bits spans more than IPv4 and stays
/// as it is (the ceilings refuse it).
fn unmap(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(unmapped) = Ipv4Net::new(v4, length)
    {
        return IpNet::V4(unmapped);
    }
    net
}

fn parse_net(text: &str) -> Option<IpNet> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(unmap(IpNet::from(address)));
    }
    text.parse::<IpNet>().ok().map(unmap)
}

fn special(net: IpNet) -> Option<fn(String) -> Refusal> {
    type Make = fn(String) -> Refusal;
    const SPECIAL: [(&str, Make); 6] = [
        ("127.0.0.0/8", Refusal::Loopback),
        ("::1/128", Refusal::Loopback),
        ("169.254.0.0/16", Refusal::LinkLocal),
        ("fe80::/10", Refusal::LinkLocal),
        ("224.0.0.0/4", Refusal::Multicast),
        ("ff00::/8", Refusal::Multicast),
    ];
    if net.network().is_unspecified() {
        return Some(Refusal::Unspecified);
    }
    SPECIAL.iter().find_map(|(range, make)| {
        let range: IpNet = range.parse().ok()?;
        (range.contains(&net) || net.contains(&range)).then_some(*make)
    })
}

impl Prefix {
    /// Parses an address (`10.0.0.1`, `fd00::1`) or a prefix (`10.0.0.0/24`).
    ///
    /// # Errors
    /// A [`Refusal`] for what is no address, has host bits, or lies in a range that can never be a proxy.
    /// Width is not judged here: see [`Limits::check`].
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let shown = || text.trim().chars().take(64).collect::<String>();
        let net = parse_net(text).ok_or_else(|| Refusal::NotAnAddress(shown()))?;
        if net.addr() != net.network() {
            return Err(Refusal::HostBits {
                given: shown(),
                network: net.trunc().to_string(),
                address: net.addr().to_string(),
            });
        }
        match special(net) {
            Some(make) => Err(make(net.to_string())),
            None => Ok(Self(net)),
        }
    }

    /// The prefix of one address.
    ///
    /// # Errors
    /// As [`Prefix::parse`].
    pub fn host(address: IpAddr) -> Result<Self, Refusal> {
        Self::parse(&address.to_string())
    }

    /// Whether the other prefix lies within this one (or is the same).
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the address lies within this prefix; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&canonical(address))
    }

    /// Whether this is an IPv4 prefix.
    pub const fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// The underlying network.
    pub const fn net(&self) -> IpNet {
        self.0
    }
}

/// An IPv4-mapped IPv6 address as the IPv4 address that it means.
pub fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// How wide a trusted prefix may be, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most prefixes that are written to a gateway.
    pub max_prefixes: usize,
    /// The shortest IPv4 prefix length that is accepted (16 = nothing wider than a /16).
    pub widest_ipv4: u8,
    /// The shortest IPv6 prefix length that is accepted.
    pub widest_ipv6: u8,
}

impl Default for Limits {
    /// `discovery.md` section 3.6 and 3.7: nothing wider than /16 and /48, at most 256 entries.
    fn default() -> Self {
        Self {
            max_prefixes: 256,
            widest_ipv4: 16,
            widest_ipv6: 48,
        }
    }
}

impl Limits {
    /// Refuses a prefix that is wider than the ceiling of its family.
    ///
    /// # Errors
    /// [`Refusal::TooWide`].
    pub fn check(&self, prefix: Prefix) -> Result<Prefix, Refusal> {
        let ceiling = if prefix.is_ipv4() {
            self.widest_ipv4
        } else {
            self.widest_ipv6
        };
        if prefix.0.prefix_len() < ceiling {
            return Err(Refusal::TooWide {
                prefix: prefix.to_string(),
                ceiling,
            });
        }
        Ok(prefix)
    }
}

/// Prefixes, each with what speaks for it. A prefix that another one covers is merged into it, evidence and all;
/// nothing is ever widened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixSet<E>(BTreeMap<Prefix, Vec<E>>);

impl<E> Default for PrefixSet<E> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<E: Clone + PartialEq> PrefixSet<E> {
    /// Adds a prefix with one piece of evidence; merges what is covered, by it or with it.
    pub fn insert(&mut self, prefix: Prefix, evidence: E) {
        let home = self
            .0
            .keys()
            .find(|known| known.covers(&prefix))
            .copied()
            .unwrap_or(prefix);
        let mut gathered = self.0.remove(&home).unwrap_or_default();
        let covered: Vec<Prefix> = self.0.keys().filter(|known| home.covers(known)).copied().collect();
        for inner in covered {
            gathered.extend(self.0.remove(&inner).unwrap_or_default());
        }
        if !gathered.contains(&evidence) {
            gathered.push(evidence);
        }
        self.0.insert(home, gathered);
    }

    /// The prefixes in order, each with its evidence.
    pub fn iter(&self) -> impl Iterator<Item = (&Prefix, &[E])> {
        self.0.iter().map(|(prefix, evidence)| (prefix, evidence.as_slice()))
    }

    /// The prefixes in order.
    pub fn prefixes(&self) -> Vec<Prefix> {
        self.0.keys().copied().collect()
    }

    /// How many prefixes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The smallest list of networks that holds exactly the same addresses: two lists trust the same peers if and only
/// if this is the same for both. `10.0.0.1` and `10.0.0.1/32`, another order, and covered duplicates do not differ.
pub fn same_addresses(prefixes: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut nets = IpNet::aggregate(&prefixes.into_iter().map(|net| net.trunc()).collect());
    nets.sort();
    nets
}

/// What the gateway makes of an entry that stands in its config already: the network it trusts, or nothing where
/// the text is no address. Host bits are ignored there, and so they are here.
pub fn as_the_gateway_reads(text: &str) -> Option<IpNet> {
    parse_net(text).map(|net| net.trunc())
}

/// Addresses to which a credential is never sent, whatever a name resolves to: link-local (with the metadata
/// services of most clouds on 169.254.169.254), the metadata services elsewhere, and what is no unicast address.
///
/// Source: the public documentation of AWS (fd00:ec2::254), Azure (168.63.129.16), Alibaba Cloud (100.100.100.200)
/// and Oracle/GCP (169.254.169.254).
pub fn never_a_gateway(address: IpAddr) -> bool {
    let address = embedded(canonical(address));
    if address.is_unspecified() || address.is_multicast() {
        return true;
    }
    match address {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_broadcast()
                || v4.octets().first() == Some(&0)
                || matches!(v4.octets(), [168, 63, 129, 16] | [100, 100, 100, 200])
        }
        // fd00:ec2::/32 is where AWS puts its services, fd20:ce::254 is GCP's metadata service.
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || matches!(
                    v6.segments(),
                    [0xfd00, 0x0ec2, ..] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254]
                )
        }
    }
}

/// The IPv4 address that an IPv6 address stands for: NAT64 (64:ff9b::/96), 6to4 (2002::/16), IPv4-compatible (::/96).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| {
        IpAddr::from(
            [high.to_be_bytes(), low.to_be_bytes()]
                .concat()
                .try_into()
                .unwrap_or([0; 4]),
        )
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        _ => address,
    }
}
