//! The gateway's client: one WebSocket that carries requests and events (protocol v4).
//!
//! [`door`] is the trait that the engine works through; [`websocket`] is the real one. [`endpoint`] decides which
//! addresses a credential may go to, [`enrol`] gets the operator's own device paired, [`identity`] is that device.

pub mod door;
pub mod endpoint;
pub mod enrol;
pub mod error;
pub mod identity;
pub mod protocol;
pub mod tls;
pub mod websocket;

pub use door::{Connector, Door};
pub use endpoint::{Credential, Endpoint, Secret};
pub use error::{CallError, ConnectError};
pub use identity::Identity;
