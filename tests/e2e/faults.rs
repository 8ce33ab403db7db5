//! Faults on the way to the gateway: each has its own reason and a next step, and heals without a restart.

use serde_json::{Value, json};

use crate::fakes::{Fake, challenge, http_answer, reply};
use crate::harness::device::DeviceIdentity;
use crate::harness::gateway::Gateway;
use crate::harness::process::free_port;
use crate::harness::{skipped, wait};
use crate::world::gateways::{own_address, own_gateway};
use crate::world::{A_WHILE, Of, PATIENCE, World, approval, enter, origin, url_spec};

const TOKEN: &str = "the-token-that-nobody-may-see";

/// Waits for `GatewayReachable=False` for this reason, with `Ready` saying the same; the message names a next step.
async fn unreachable(world: &World, reason: &str, next_step: &str) -> String {
    let message = world.condition(Of::Gateway, "GatewayReachable", "False", reason).await;
    assert!(message.contains(next_step), "no next step in: {message}");
    let ready = world.condition(Of::Gateway, "Ready", "False", reason).await;
    assert_eq!(ready, message);
    message
}

/// A world whose `GatewayTrust` leads to this port of loopback.
async fn world_with_url(port: u16) -> World {
    let world = World::cluster().await;
    world.credentials(TOKEN, Some(&origin(port))).await;
    world.trust(url_spec(port)).await;
    world
}

/// One gateway through what befalls it: it comes late, with another token, and somebody removes the operator.
async fn a_gateway_that_comes_late(world: &World, name: &str) {
    let port = free_port();
    world
        .credentials("not-the-token-of-this-gateway", Some(&origin(port)))
        .await;
    world.trust(url_spec(port)).await;
    let message = unreachable(world, "ConnectFailed", "Is the gateway running").await;
    assert!(message.contains(&format!("127.0.0.1:{port}")), "{message}");

    let builder = Gateway::builder().port(port).token("token-of-the-late-gateway");
    let (gateway, _slot) = own_gateway(builder).await;
    unreachable(world, "WrongToken", "openclaw config get gateway.auth.mode").await;
    // Longer than the operator takes to look at the Secret again.
    wait::throughout("one try of a wrong token", 5 * A_WHILE, async || {
        let tries = wrong_tokens(&gateway);
        if tries == 1 {
            Ok(())
        } else {
            Err(format!("{tries} tries"))
        }
    })
    .await;

    world.credentials(gateway.token(), Some(&origin(port))).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;
    world.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    assert_eq!(wrong_tokens(&gateway), 1);

    let status = world.status(Of::Gateway).await;
    let own = status["gateway"]["operatorDevice"]
        .as_str()
        .expect("its device")
        .to_owned();
    let before = gateway.paired(&own).await.expect("the operator is paired");
    let removed = gateway
        .admin()
        .await
        .call("device.pair.remove", json!({"deviceId": own}))
        .await;
    removed.expect("device.pair.remove");
    wait::until("the operator to be paired again", PATIENCE, async || {
        let record = gateway.paired(&own).await.ok_or("not paired")?;
        if record["approvedAtMs"].as_u64() > before["approvedAtMs"].as_u64() {
            Ok(())
        } else {
            Err("the old pairing")
        }
    })
    .await;
    match crate::world::gateways::remote_url(&gateway) {
        Some(url) => {
            let tablet = DeviceIdentity::generate();
            world.approve("tablet", approval(&tablet, &["operator.read"])).await;
            let options = crate::harness::device::ConnectOptions::new(&url, gateway.token());
            drop(enter(&tablet, &options).await);
        }
        None => skipped(name, "a device after the recovery: only loopback here"),
    }
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;
    assert!(world.runner().await.operator().ended().is_none(), "the operator ended");
    world
        .shows_no_secret(&[gateway.token(), "not-the-token-of-this-gateway"])
        .await;
}

/// How often the gateway's log says that somebody came with a wrong token.
fn wrong_tokens(gateway: &Gateway) -> usize {
    let log = gateway.log_text();
    log.lines()
        .filter(|line| line.contains("[ws] unauthorized") && line.contains("reason=token_mismatch"))
        .count()
}

#[tokio::test]
async fn kubernetes_a_late_gateway_a_wrong_token_and_a_removed_operator_heal_by_themselves() {
    a_gateway_that_comes_late(&World::cluster().await, "kubernetes: faults").await;
}

#[tokio::test]
async fn sync_a_late_gateway_a_wrong_token_and_a_removed_operator_heal_by_themselves() {
    a_gateway_that_comes_late(&World::folder(), "sync: faults").await;
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    let target = Fake::silent().await;
    let location = format!("Location: {}/\r\n", origin(target.port()));
    let fake = Fake::http(http_answer("302 Found", &location, "moved")).await;
    let world = world_with_url(fake.port()).await;
    unreachable(&world, "Redirected", "spec.gateway.url").await;
    assert!(fake.seen().contains(&"GET / HTTP/1.1".to_owned()), "{:?}", fake.seen());
    wait::throughout("no request to the redirect's target", A_WHILE, async || {
        target.connections() == 0
    })
    .await;
    world.shows_no_secret(&[TOKEN]).await;
}

#[tokio::test]
async fn a_secret_goes_nowhere_without_its_consent() {
    let fake = Fake::http(http_answer("200 OK", "", "<html>no gateway</html>")).await;
    let world = World::cluster().await;
    world.trust(url_spec(fake.port())).await;
    unreachable(&world, "SecretNotFound", "Create it").await;

    let cluster = world.in_cluster();
    cluster.secret("credentials", "another-key", TOKEN, None).await;
    let message = unreachable(&world, "SecretKeyMissing", "credentials").await;
    assert!(message.contains("\"token\""), "{message}");

    // A consent to somewhere else is none.
    let elsewhere = origin(fake.port() + 1);
    cluster.secret("credentials", "token", TOKEN, Some(&elsewhere)).await;
    let command = format!("gatewaytrust.io/allow-endpoint={}", origin(fake.port()));
    let message = unreachable(&world, "EndpointNotAllowed", &command).await;
    wait::throughout("no connection without consent", A_WHILE, async || {
        fake.connections() == 0
    })
    .await;

    // The command in the message is the one that helps.
    let command = message.split_once("kubectl ").expect("a command").1;
    let args: Vec<&str> = command.split_whitespace().collect();
    cluster.kubectl(&args).await.ok();
    unreachable(&world, "UnexpectedAnswer", "18789").await;
    assert!(fake.connections() > 0);
    world.shows_no_secret(&[TOKEN]).await;
}

#[tokio::test]
async fn sync_sends_a_token_to_other_hosts_only_when_told_to() {
    let fake = Fake::silent().await;
    let Some(address) = own_address() else {
        return skipped("sync: consent", "this machine has no IPv4 address besides loopback");
    };
    let world = World::folder();
    let mut spec = url_spec(fake.port());
    spec["gateway"]["url"] = json!(format!("https://{address}:{}/", fake.port()));
    world.trust(spec).await;
    unreachable(&world, "EndpointNotAllowed", "--allow-endpoint https://").await;
    wait::throughout("no connection without consent", A_WHILE, async || {
        fake.connections() == 0
    })
    .await;

    // The target is for good in a cluster; a folder may hold another file.
    let mut spec = url_spec(fake.port());
    spec["gateway"]["url"] = json!(format!("http://{address}:{}/", fake.port()));
    world.trust(spec).await;
    unreachable(&world, "InsecureUrl", "--allow-insecure-gateway-urls").await;
    wait::throughout("no connection without TLS", A_WHILE, async || fake.connections() == 0).await;
}

/// The operator goes on, and has asked for nothing but to read.
async fn nothing_was_written(world: &World, fake: &Fake) {
    let harmless = ["connection", "connect", "config.get", "device.pair.list"];
    wait::throughout("no write", A_WHILE, async || {
        world
            .runner()
            .await
            .operator()
            .ended()
            .map_or(Ok(()), |status| Err(status.to_string()))?;
        let seen = fake.seen();
        let write = seen
            .iter()
            .find(|line| !harmless.contains(&line.as_str()) && !line.starts_with("GET "));
        write.map_or(Ok(()), |line| Err(line.clone()))
    })
    .await;
}

#[tokio::test]
async fn html_in_the_place_of_a_gateway_is_an_unexpected_answer() {
    let fake = Fake::http(http_answer(
        "200 OK",
        "Content-Type: text/html\r\n",
        "<html>Welcome!</html>",
    ))
    .await;
    let world = world_with_url(fake.port()).await;
    let message = unreachable(&world, "UnexpectedAnswer", "18789").await;
    assert!(message.contains("HTTP 200"), "{message}");
    assert!(!message.contains("Welcome"), "a body is shown: {message}");
    nothing_was_written(&world, &fake).await;
    world.shows_no_secret(&[TOKEN]).await;
}

#[tokio::test]
async fn truncated_json_is_an_unexpected_answer() {
    let cut = challenge().split_at(40).0.to_owned();
    let fake = Fake::websocket(&cut, |_| None).await;
    let world = world_with_url(fake.port()).await;
    unreachable(&world, "UnexpectedAnswer", "18789").await;
    nothing_was_written(&world, &fake).await;
    world.shows_no_secret(&[TOKEN]).await;
}

#[tokio::test]
async fn a_gateway_that_cuts_its_answer_to_the_sign_in_is_unexpected() {
    let fake = Fake::websocket(&challenge(), |request| {
        let whole = reply(request, json!({"server": {"version": "1"}}));
        Some(whole.split_at(whole.len() / 2).0.to_owned())
    })
    .await;
    let world = world_with_url(fake.port()).await;
    unreachable(&world, "UnexpectedAnswer", "18789").await;
    nothing_was_written(&world, &fake).await;
}

#[tokio::test]
async fn answers_of_another_shape_lead_to_no_write() {
    let fake = Fake::websocket(&challenge(), |request| {
        let payload = match request["method"].as_str() {
            Some("connect") => json!({"server": {"version": "2099.1.1", "new": {}}, "unknown": [[]]}),
            Some("config.get") => json!({"hash": "h", "config": {"gateway": {"trustedProxies": [1, {"a": 2}]}}}),
            _ => json!({"paired": "none", "pending": 7, "unknown": true}),
        };
        Some(reply(request, payload))
    })
    .await;
    let world = world_with_url(fake.port()).await;
    let mut spec = url_spec(fake.port());
    spec["proxies"] = json!({"ranges": [{"cidr": "192.0.2.0/24", "reason": "to have something to write"}]});
    world.trust(spec).await;
    let device = DeviceIdentity::generate();
    world.approve("device", approval(&device, &["operator.read"])).await;
    world
        .condition(Of::Gateway, "GatewayReachable", "True", "Connected")
        .await;
    let trust = world
        .condition(Of::Gateway, "TrustApplied", "False", "CallFailed")
        .await;
    assert!(trust.contains("gateway.trustedProxies"), "{trust}");
    let approvals = world
        .condition(Of::Gateway, "ApprovalsEnforced", "False", "CallFailed")
        .await;
    assert!(approvals.contains("device.pair.list"), "{approvals}");
    assert_ne!(ready_of(&world).await, "True");
    nothing_was_written(&world, &fake).await;
    world.shows_no_secret(&[TOKEN]).await;
}

async fn ready_of(world: &World) -> Value {
    let status = world.status(Of::Gateway).await;
    crate::world::condition_of(&status, "Ready")["status"].take()
}
