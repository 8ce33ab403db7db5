//! gatewaytrust keeps an OpenClaw gateway's trust in Git: which proxies it believes, and which devices may connect.
//!
//! Data flows one way: [`cluster`] and [`gateway`] are observed, [`discovery`] and [`plan`] decide (pure), and the
//! [`engine`] applies and reports. Two fronts feed the engine: [`controller`] (Kubernetes) and [`folder`] (files).

#![forbid(unsafe_code)]

pub mod api;
pub mod cidr;
pub mod cli;
pub mod cluster;
pub mod controller;
pub mod discovery;
pub mod engine;
pub mod folder;
pub mod gateway;
pub mod plan;
pub mod telemetry;
