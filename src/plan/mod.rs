//! Desired + observed + now -> a plan that is data. Pure.
//!
//! [`trust`] plans the gateway's trusted-proxy config, [`approvals`] its pairing store. Planning again after a plan
//! was applied gives nothing more to do: a property test holds both to it.

pub mod approvals;
mod outcomes;
pub mod trust;

#[cfg(test)]
pub(crate) mod model;
