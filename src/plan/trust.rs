//! What the gateway's trusted-proxy config should be, and the one write (if any) that makes it so. Pure.
//!
//! A write closes every connected client (measured: `4001 gateway policy changed`), so there is none without a
//! difference in meaning: the gateway's own list and the wanted one are compared as sets of addresses.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::api::Reason;
use crate::api::condition::{ConditionType, Truth, Verdict};
use crate::api::gateway_trust::{Adopt, Discover, Mode, Withheld};
use crate::api::validated::ValidatedTrust;
use crate::cidr::{Prefix, as_the_gateway_reads, same_addresses};
use crate::discovery::{Discovery, Evidence};
use crate::gateway::protocol::{ConfigPatch, GatewayConfig};

/// What the plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The spec.
    pub trust: &'a ValidatedTrust,
    /// What was discovered and declared.
    pub discovery: &'a Discovery,
    /// The gateway's config; none where it is not known.
    pub config: Option<&'a GatewayConfig>,
    /// The prefixes that the operator itself has put there before.
    pub owned: &'a BTreeSet<Prefix>,
}

/// A write to the config, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What is written.
    pub patch: ConfigPatch,
    /// Prefixes that come new.
    pub added: Vec<String>,
    /// Entries that go.
    pub removed: Vec<String>,
}

impl Change {
    /// One line: what is added and what goes.
    pub fn summary(&self) -> String {
        let part =
            |verb: &str, entries: &[String]| (!entries.is_empty()).then(|| format!("{verb} {}", entries.join(", ")));
        let parts: Vec<String> = [part("add", &self.added), part("remove", &self.removed)]
            .into_iter()
            .flatten()
            .collect();
        if parts.is_empty() {
            "rewrite the list".to_owned()
        } else {
            parts.join("; ")
        }
    }
}

/// The plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustPlan {
    /// The prefixes to trust, each with its chains of evidence.
    pub trusted: BTreeMap<Prefix, Vec<Vec<Evidence>>>,
    /// Candidates that are not trusted.
    pub withheld: BTreeSet<Withheld>,
    /// The write that is needed; none where the config means the same already, or is not known.
    pub change: Option<Change>,
    /// Whether the change may be made (not in `mode: Observe`).
    pub enforce: bool,
    /// The prefixes that are the operator's own once the plan has been applied.
    pub owned_after: BTreeSet<Prefix>,
    /// `ProxiesDiscovered` and `TrustApplied`.
    pub verdicts: Vec<Verdict>,
}

/// Plans the trusted-proxy config.
pub fn plan(inputs: Inputs<'_>) -> TrustPlan {
    let Inputs {
        trust,
        discovery,
        config,
        owned,
    } = inputs;
    let mut withheld = discovery.withheld.clone();
    let mut trusted: BTreeMap<Prefix, Vec<Vec<Evidence>>> = BTreeMap::new();
    for (prefix, chains) in discovery.trusted.iter() {
        trusted.insert(*prefix, chains.to_vec());
    }
    let discovered = discovered_verdict(trust, discovery);
    let mut plan = TrustPlan {
        trusted,
        withheld: BTreeSet::new(),
        change: None,
        enforce: trust.mode == Mode::Enforce,
        owned_after: owned.clone(),
        verdicts: vec![discovered],
    };

    if plan.trusted.len() > trust.limits.max_prefixes {
        plan.verdicts.push(Verdict::new(
            ConditionType::TrustApplied,
            false,
            Reason::TooManyPrefixes,
            format!(
                "{} prefixes were found, more than spec.proxies.limits.maxPrefixes ({}); the gateway's list stays as it is. Raise the limit, or list ranges in spec.proxies.ranges that cover them.",
                plan.trusted.len(),
                trust.limits.max_prefixes
            ),
        ));
        plan.withheld = withheld;
        return plan;
    }
    if discovery.starting {
        let message = "Reading the cluster for the first time; nothing is written before that is done.";
        plan.verdicts.push(Verdict::new(
            ConditionType::TrustApplied,
            Truth::Unknown,
            Reason::Pending,
            message,
        ));
        plan.withheld = withheld;
        return plan;
    }
    let Some(config) = config else {
        plan.verdicts.push(Verdict::new(
            ConditionType::TrustApplied,
            Truth::Unknown,
            Reason::GatewayNotReady,
            "The gateway's config is not known at present; see GatewayReachable.",
        ));
        plan.withheld = withheld;
        return plan;
    };

    let existing: Vec<&str> = config.trusted_proxies.iter().flatten().map(String::as_str).collect();
    let target = target_list(&inputs, &plan.trusted, &existing, &mut withheld);
    plan.withheld = withheld;
    plan.owned_after = target.owned;
    let read =
        |entries: &[&str]| -> Vec<IpNet> { entries.iter().filter_map(|text| as_the_gateway_reads(text)).collect() };
    let wanted: Vec<&str> = target.entries.iter().map(String::as_str).collect();
    if same_addresses(read(&existing)) != same_addresses(read(&wanted)) {
        let before: BTreeSet<IpNet> = read(&existing).into_iter().collect();
        let after: BTreeSet<IpNet> = read(&wanted).into_iter().collect();
        let show = |nets: Vec<&IpNet>| nets.into_iter().map(IpNet::to_string).collect();
        plan.change = Some(Change {
            patch: ConfigPatch {
                trusted_proxies: target.entries.clone(),
            },
            added: show(after.difference(&before).collect()),
            removed: show(before.difference(&after).collect()),
        });
    }
    plan.verdicts.push(applied_verdict(
        &plan,
        target.kept_empty,
        &target.unexplained,
        discovery,
    ));
    plan
}

struct Wanted {
    entries: Vec<String>,
    owned: BTreeSet<Prefix>,
    unexplained: Vec<String>,
    kept_empty: bool,
}

/// The list that the gateway should have: what is planned, what was there before us (`adopt: Merge`), and, while
/// discovery is in doubt, what the operator itself put there.
fn target_list(
    inputs: &Inputs<'_>,
    trusted: &BTreeMap<Prefix, Vec<Vec<Evidence>>>,
    existing: &[&str],
    withheld: &mut BTreeSet<Withheld>,
) -> Wanted {
    let replace = inputs.trust.adopt == Adopt::Replace;
    let doubt = inputs.discovery.doubt || !inputs.discovery.faults.is_empty();
    let mut entries: Vec<String> = trusted.keys().map(Prefix::to_string).collect();
    let mut owned: BTreeSet<Prefix> = trusted.keys().copied().collect();
    let mut unexplained = Vec::new();
    for text in existing {
        let Some(net) = as_the_gateway_reads(text) else {
            // It means nothing to the gateway; it goes with the next write that is needed anyway.
            withheld.insert(Withheld {
                candidate: (*text).chars().take(64).collect(),
                reason: "NotAnAddress".to_owned(),
                hint: "this entry of the gateway's own gateway.trustedProxies is no address: the gateway ignores it, and the next write leaves it out".to_owned(),
            });
            continue;
        };
        if trusted.keys().any(|prefix| prefix.net().contains(&net)) {
            continue;
        }
        let ours = inputs.owned.iter().find(|prefix| prefix.net() == net).copied();
        match ours {
            // Ours, and no longer explained: it goes, unless discovery could not read everything.
            Some(prefix) if doubt => {
                entries.push(net.to_string());
                owned.insert(prefix);
            }
            Some(_) => {}
            None if replace && !doubt => {}
            None => {
                entries.push(net.to_string());
                unexplained.push(net.to_string());
            }
        }
    }
    let kept_empty = entries.is_empty() && !replace && existing.iter().any(|text| as_the_gateway_reads(text).is_some());
    if kept_empty {
        entries = existing
            .iter()
            .filter_map(|text| as_the_gateway_reads(text))
            .map(|net| net.to_string())
            .collect();
        owned = inputs.owned.clone();
    }
    entries.sort_by_key(|text| as_the_gateway_reads(text));
    entries.dedup();
    Wanted {
        entries,
        owned,
        unexplained,
        kept_empty,
    }
}

fn discovered_verdict(trust: &ValidatedTrust, discovery: &Discovery) -> Verdict {
    if discovery.starting {
        return Verdict::new(
            ConditionType::ProxiesDiscovered,
            Truth::Unknown,
            Reason::Pending,
            "Reading the cluster.",
        );
    }
    let (truth, reason, message) = if !discovery.faults.is_empty() {
        let all = discovery.faults.join("; ");
        (
            false,
            Reason::SourceUnavailable,
            format!(
                "Not everything could be read, so the last good set stays: {all}. May the operator read it? kubectl auth can-i list <resource> --as=<its service account>"
            ),
        )
    } else if !discovery.withheld.is_empty() {
        let first = discovery
            .withheld
            .iter()
            .next()
            .map(|entry| format!("{} ({}): {}", entry.candidate, entry.reason, entry.hint))
            .unwrap_or_default();
        (
            true,
            Reason::Withheld,
            format!(
                "{} to trust, {} withheld (see status.withheld). First: {first}",
                count(discovery.trusted.len(), "prefix", "prefixes"),
                discovery.withheld.len()
            ),
        )
    } else {
        let found = match discovery.trusted.len() {
            0 => "No proxy is declared or found, so none is to be trusted.".to_owned(),
            number => format!("{} to trust.", count(number, "prefix", "prefixes")),
        };
        match trust.discover {
            Discover::Auto => (true, Reason::Discovered, found),
            Discover::None => (
                true,
                Reason::DiscoveryOff,
                format!("{found} Nothing is looked for (proxies.discover: None)."),
            ),
        }
    };
    Verdict::new(ConditionType::ProxiesDiscovered, truth, reason, message)
}

fn applied_verdict(plan: &TrustPlan, kept_empty: bool, unexplained: &[String], discovery: &Discovery) -> Verdict {
    let (truth, reason, message) = match &plan.change {
        Some(change) if plan.enforce => (false, Reason::Applying, format!("To write to gateway.trustedProxies: {}. This closes every connected client once.", change.summary())),
        Some(change) => (false, Reason::Observing, format!("mode: Observe. Enforce would {} in gateway.trustedProxies and close every connected client once.", change.summary())),
        None if kept_empty => (
            false,
            Reason::EmptyResultKept,
            "Nothing explains any entry of the gateway's list any more. It stays, so that a mistake does not cut everybody off. To empty it, set spec.proxies.adopt: Replace.".to_owned(),
        ),
        None if !unexplained.is_empty() && discovery.faults.is_empty() => (
            true,
            Reason::WouldRemoveExisting,
            format!(
                "The gateway trusts all that it should. These entries were there before and nothing explains them: {}. Explain them in spec.proxies.ranges, or remove them by spec.proxies.adopt: Replace.",
                unexplained.join(", ")
            ),
        ),
        None if plan.trusted.is_empty() => (true, Reason::AsDeclared, "The gateway trusts no proxy.".to_owned()),
        None => (
            true,
            Reason::AsDeclared,
            format!("The gateway trusts exactly {}.", count(plan.trusted.len(), "prefix", "prefixes"))),
    };
    Verdict::new(ConditionType::TrustApplied, truth, reason, message)
}

/// `1 prefix`, `3 prefixes`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}
