//! IPv4 ranges, as far as two of them can overlap.

use std::net::Ipv4Addr;

/// A range such as 10.231.0.0/24.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u32,
    prefix: u32,
}

impl Range {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
        Some(Self { first: address & mask(prefix), prefix })
    }

    pub(crate) fn overlaps(self, other: Self) -> bool {
        let common = mask(self.prefix.min(other.prefix));
        self.first & common == other.first & common
    }
}

fn mask(prefix: u32) -> u32 {
    u32::MAX.checked_shl(32 - prefix).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_if_one_holds_the_other() {
        let overlap = |a, b| Range::parse(a).unwrap().overlaps(Range::parse(b).unwrap());
        assert!(overlap("10.232.0.0/16", "10.232.7.9"));
        assert!(overlap("10.0.0.0/8", "10.232.0.0/16"));
        assert!(overlap("0.0.0.0/0", "10.232.0.0/16"));
        assert!(!overlap("10.231.0.0/24", "10.231.1.0/24"));
        assert!(Range::parse("fd00::/64").is_none() && Range::parse("10.0.0.0/33").is_none());
    }
}
