//! The gateways that tests share, and addresses from which a client is remote.

use std::net::{Ipv4Addr, UdpSocket};

use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

use super::World;
use crate::harness::gateway::{Builder, Gateway};
use crate::harness::netns::{Network, Unavailable};

// Some 250 MB each.
static SLOTS: Semaphore = Semaphore::const_new(3);

/// A gateway of a test's own; it waits for its turn where many tests run at once.
pub async fn own_gateway(builder: Builder) -> (Gateway, SemaphorePermit<'static>) {
    let permit = SLOTS.acquire().await.expect("never closed");
    (builder.start().await, permit)
}

/// A gateway under an operator, for tests that only bring devices of their own.
pub struct Managed {
    pub gateway: Gateway,
    pub network: Result<Network, Unavailable>,
    namespace: Option<String>,
    folder: Option<World>,
}

static IN_CLUSTER: OnceCell<Managed> = OnceCell::const_new();
static IN_FOLDER: OnceCell<Managed> = OnceCell::const_new();

async fn managed(token: &str) -> Managed {
    Managed {
        gateway: Gateway::builder().token(token).start().await,
        network: Network::new().await,
        namespace: None,
        folder: None,
    }
}

impl Managed {
    /// Through `gatewaytrust run`.
    pub async fn in_cluster() -> (&'static Self, World) {
        let start = async || {
            let mut managed = managed("the-token-of-the-shared-gateway-in-a-cluster").await;
            let world = World::cluster().await;
            world.manage(&managed.gateway).await;
            managed.namespace = Some(world.in_cluster().namespace.clone());
            managed
        };
        let managed = IN_CLUSTER.get_or_init(start).await;
        // A client lives in the runtime of the test that made it: each test has its own.
        let world = World::cluster_in(managed.namespace.as_deref().expect("a namespace")).await;
        (managed, world)
    }

    /// Through `gatewaytrust sync`.
    pub async fn in_folder() -> (&'static Self, &'static World) {
        let start = async || {
            let mut managed = managed("the-token-of-the-shared-gateway-of-a-folder").await;
            let world = World::folder();
            world.manage(&managed.gateway).await;
            managed.folder = Some(world);
            managed
        };
        let managed = IN_FOLDER.get_or_init(start).await;
        (managed, managed.folder.as_ref().expect("a world"))
    }

    /// By this URL a client of this machine is remote; none where the machine has only loopback.
    pub fn remote_url(&self) -> Option<String> {
        remote_url(&self.gateway)
    }
}

/// By this URL a client of this machine is remote, without root or namespaces.
pub fn remote_url(gateway: &Gateway) -> Option<String> {
    own_address().map(|address| gateway.url_at(address))
}

/// An address of this machine besides loopback: whoever connects to it comes from it. Nothing is sent.
pub fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // A documentation address (RFC 5737): the kernel only looks for a route.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}
