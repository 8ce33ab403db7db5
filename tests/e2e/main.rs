//! End-to-end tests: the operator's binary against the real parts (kube-apiserver, etcd, the gateway, nginx).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr
)]

mod approvals;
mod crds;
mod fakes;
mod faults;
mod harness;
mod harness_selftest;
mod kubernetes;
mod orphans;
mod scenarios;
mod service;
mod sync;
mod tls;
mod world;
