//! The engine over the model of the gateway: lanes, faults and what is reported. Time is the test's own.

use super::*;
use crate::plan::approvals::ApprovalInput;
use crate::plan::model::{approval, grant, key};

mod world;

use world::{Patch, World, gateway};

fn start(world: &World, desired: Desired) -> Worker {
    Worker::start(world.clone(), world.clone(), Settings::default(), desired)
}

fn laptop() -> ApprovalInput {
    approval("laptop", 1, grant(&["operator"], &["operator.read"]))
}

fn ask(world: &World, scopes: &[&str]) {
    world.edit(|state| state.model.ask(key(1), grant(&["operator"], scopes)));
}

/// A device that calls itself an operator's and was paired before, with these scopes.
fn another_operator(world: &World, scopes: &[&str]) {
    world.edit(|state| {
        state.model.ask(key(9), grant(&["operator"], scopes));
        let request = state.model.devices.pending.first().expect("asked").request_id.clone();
        state.model.apply(&crate::plan::approvals::Action::Approve {
            request_id: request,
            device_id: String::new(),
            at_most: Default::default(),
        });
        for record in &mut state.model.devices.paired {
            record.display_name = "gatewaytrust cluster other ns/gateway".to_owned();
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_covered_request_is_approved_and_a_deleted_approval_revokes() {
    let world = World::new();
    let worker = start(&world, World::desired(&[], vec![laptop()]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
    ask(&world, &["operator.read"]);
    world
        .until("paired", |state| state.model.devices.paired.len() == 1)
        .await;
    let mut deleted = laptop();
    deleted.deleting = true;
    worker.update(World::desired(&[], vec![deleted]));
    world
        .until("released", |state| {
            state.released == [(laptop().key, crate::api::Reason::Revoked)]
        })
        .await;
    assert!(
        world.state().model.devices.paired.is_empty(),
        "released only after the device was removed"
    );
}

#[tokio::test(start_paused = true)]
async fn approvals_never_wait_for_a_config_write() {
    let world = World::new();
    world.edit(|state| state.patch = Patch::Hangs);
    let _worker = start(&world, World::desired(&["10.0.0.1"], vec![laptop()]));
    world
        .until("the write is under way", |state| !state.remembered.is_empty())
        .await;
    ask(&world, &["operator.read"]);
    world
        .until("paired", |state| state.model.devices.paired.len() == 1)
        .await;
    assert!(world.state().patches.is_empty(), "the write still hangs");
}

#[tokio::test(start_paused = true)]
async fn what_the_gateway_gives_is_read_back() {
    let world = World::new();
    world.edit(|state| state.grants_more = true);
    let _worker = start(&world, World::desired(&[], vec![laptop()]));
    ask(&world, &["operator.read"]);
    world
        .until("told", |state| {
            state.notes.iter().any(|note| note.reason == "GrantExceeded")
        })
        .await;
    assert!(
        world.state().model.devices.paired.is_empty(),
        "a device that got more is removed at once"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_tried_once_and_a_new_one_at_once() {
    let world = World::new();
    world.edit(|state| state.offered = "wrong".to_owned());
    let _worker = start(&world, World::desired(&[], vec![]));
    world
        .until("said", |state| {
            World::condition(state, "GatewayReachable") == "False/WrongToken"
        })
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(240)).await;
    assert_eq!(world.state().signins, 1, "ten wrong tokens would lock the address out");
    world.edit(|state| state.offered = "right".to_owned());
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_set_is_written_once_and_remembered_before() {
    let world = World::new();
    world.edit(|state| state.model.config.trusted_proxies = Some(vec!["192.168.0.9".to_owned()]));
    let _worker = start(&world, World::desired(&["10.0.0.1", "10.0.0.2/32"], vec![]));
    world
        .until("ready", |state| {
            World::condition(state, "TrustApplied") == "True/WouldRemoveExisting"
        })
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    let state = world.state();
    assert_eq!(state.patches, [["10.0.0.1/32", "10.0.0.2/32", "192.168.0.9/32"]]);
    let owned: Vec<String> = state
        .remembered
        .first()
        .expect("remembered")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        owned,
        ["10.0.0.1/32", "10.0.0.2/32"],
        "what was there before is not ours"
    );
    assert_eq!(
        state.status.policy_changes.as_ref().map(|changes| changes.total),
        Some(1)
    );
}

#[tokio::test(start_paused = true)]
async fn another_spelling_writes_nothing() {
    let world = World::new();
    world.edit(|state| {
        state.model.config.trusted_proxies = Some(vec!["10.0.0.2/32".to_owned(), "::ffff:10.0.0.1".to_owned()])
    });
    let _worker = start(&world, World::desired(&["10.0.0.1", "10.0.0.2"], vec![]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert!(world.state().patches.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stale_revisions_are_read_again_and_limits_are_obeyed() {
    for (mode, least) in [(Patch::Stale(2), 0), (Patch::Limited, 40)] {
        let world = World::new();
        world.edit(|state| state.patch = mode.clone());
        let before = tokio::time::Instant::now();
        let _worker = start(&world, World::desired(&["10.0.0.1"], vec![]));
        if mode == Patch::Limited {
            world
                .until("said", |state| {
                    World::condition(state, "TrustApplied") == "False/Throttled"
                })
                .await;
        }
        world.until("written", |state| state.patches.len() == 1).await;
        assert!(before.elapsed().as_secs() >= least, "{mode:?}");
        world
            .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_owner_who_keeps_reverting_is_named_and_not_fought() {
    let world = World::new();
    world.edit(|state| state.patch = Patch::Reverted(vec![]));
    let worker = start(&world, World::desired(&["10.0.0.1"], vec![]));
    world
        .until("given up", |state| {
            World::condition(state, "TrustApplied") == "False/RevertedByOther"
        })
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(1200)).await;
    assert_eq!(world.state().patches.len(), 3);
    assert_eq!(
        World::condition(&world.state(), "TrustApplied"),
        "False/RevertedByOther"
    );
    // The other owner was told; a change of the spec tries again.
    world.edit(|state| state.patch = Patch::Works);
    worker.update(World::desired(&["10.0.0.1", "10.0.0.3"], vec![]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
}

#[tokio::test(start_paused = true)]
async fn observe_writes_nothing_and_hangs_no_deletion() {
    let world = World::new();
    ask(&world, &["operator.read"]);
    let mut deleted = approval("gone", 2, grant(&["operator"], &[]));
    deleted.deleting = true;
    world.edit(|state| state.model.ask(key(2), grant(&["operator"], &[])));
    let mut desired = World::desired(&["10.0.0.1"], vec![laptop(), deleted]);
    if let Ok(spec) = &mut desired.spec {
        spec.mode = crate::api::gateway_trust::Mode::Observe;
    }
    let _worker = start(&world, desired);
    world
        .until("observing", |state| {
            World::condition(state, "Ready") == "True/Observing"
        })
        .await;
    world.until("released", |state| !state.released.is_empty()).await;
    let state = world.state();
    assert!(state.patches.is_empty() && state.model.devices.paired.is_empty());
    assert_eq!(World::condition(&state, "TrustApplied"), "False/Observing");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_another_operator_manages_is_left_alone() {
    let world = World::new();
    another_operator(&world, &["operator.admin"]);
    ask(&world, &["operator.read"]);
    let _worker = start(&world, World::desired(&["10.0.0.1"], vec![laptop()]));
    world
        .until("claimed", |state| {
            World::condition(state, "ApprovalsEnforced") == "False/GatewayClaimed"
        })
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(300)).await;
    let state = world.state();
    assert!(state.patches.is_empty());
    assert_eq!(
        state.model.devices.paired.len(),
        1,
        "the waiting device is not approved"
    );
}

#[tokio::test(start_paused = true)]
async fn a_short_break_is_not_reported_and_a_missed_event_is_made_up_for() {
    let world = World::new();
    let _worker = start(&world, World::desired(&[], vec![laptop()]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
    let since = world
        .state()
        .status
        .conditions
        .first()
        .map(|condition| condition.last_transition_time.clone());
    world.close(1012);
    world.until("again", |state| state.signins == 2).await;
    assert_eq!(
        world
            .state()
            .status
            .conditions
            .first()
            .map(|condition| condition.last_transition_time.clone()),
        since
    );
    // A request whose event is lost is found by the slow re-list.
    world
        .state()
        .model
        .ask(key(1), grant(&["operator"], &["operator.read"]));
    world
        .until("paired", |state| state.model.devices.paired.len() == 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn statuses_are_written_only_when_something_differs() {
    let world = World::new();
    let worker = start(&world, World::desired(&[], vec![laptop()]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
    let published = worker.published();
    let before = published.borrow().trust.clone();
    world.edit(|state| state.status = Default::default());
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    assert_eq!(world.state().status, Default::default(), "at rest nothing is written");
    assert_eq!(published.borrow().trust, before);
    assert_eq!(gateway().to_string(), "ns/gateway");
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_became_invalid_lets_no_approval_go() {
    let world = World::new();
    let worker = start(&world, World::desired(&[], vec![laptop()]));
    ask(&world, &["operator.read"]);
    world
        .until("paired", |state| state.model.devices.paired.len() == 1)
        .await;
    let mut deleted = laptop();
    deleted.deleting = true;
    let mut broken = World::desired(&[], vec![deleted.clone()]);
    broken.spec = Err(crate::api::validated::SpecError::Port(70000));
    worker.update(broken);
    world
        .until("said", |state| World::condition(state, "Ready") == "False/InvalidSpec")
        .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert!(world.state().released.is_empty(), "the device is still paired");
    worker.update(World::desired(&[], vec![deleted]));
    world.until("released", |state| !state.released.is_empty()).await;
    assert!(world.state().model.devices.paired.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_was_made_anew_is_another_one() {
    let world = World::new();
    let with = |uid: &str, deleting: bool| {
        let mut input = laptop();
        input.deleting = deleting;
        let mut desired = World::desired(&[], vec![input]);
        for approval in &mut desired.approvals {
            approval.uid = Some(uid.to_owned());
        }
        desired
    };
    let worker = start(&world, with("one", false));
    world.until("in force", |state| state.approvals.len() == 1).await;
    worker.update(with("one", true));
    world.until("released", |state| state.released.len() == 1).await;
    // The API server has a new object of that name before the worker has seen it without one.
    world.state().approvals.clear();
    worker.update(with("two", false));
    world
        .until("its status is written", |state| state.approvals.len() == 1)
        .await;
    worker.update(with("two", true));
    world.until("released too", |state| state.released.len() == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_status_speaks_of_the_generation_that_was_planned() {
    let world = World::new();
    let worker = start(&world, World::desired(&[], vec![]));
    world
        .until("ready", |state| World::condition(state, "Ready") == "True/AsDeclared")
        .await;
    world.edit(|state| state.patch = Patch::Hangs);
    let mut next = World::desired(&["10.0.0.1"], vec![]);
    next.generation = Some(2);
    worker.update(next);
    world
        .until("second generation", |state| state.status.observed_generation == Some(2))
        .await;
    assert_eq!(
        World::condition(&world.state(), "TrustApplied"),
        "False/Applying",
        "not the verdict on the first one"
    );
}

#[tokio::test(start_paused = true)]
async fn a_device_that_calls_itself_an_operator_claims_nothing() {
    let world = World::new();
    another_operator(&world, &["operator.read"]);
    ask(&world, &["operator.read"]);
    let _worker = start(&world, World::desired(&[], vec![laptop()]));
    world
        .until("paired", |state| state.model.devices.paired.len() == 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_was_applied_before_says_nothing_of_a_new_spec_while_the_gateway_is_away() {
    let world = World::new();
    let worker = start(&world, World::desired(&["10.0.0.1"], vec![]));
    world
        .until("applied", |state| {
            World::condition(state, "TrustApplied") == "True/AsDeclared"
        })
        .await;
    world.edit(|state| state.token = "another".to_owned());
    world.close(1012);
    world
        .until("away", |state| {
            World::condition(state, "GatewayReachable") == "False/WrongToken"
        })
        .await;
    assert_eq!(
        World::condition(&world.state(), "TrustApplied"),
        "True/AsDeclared",
        "still the best that is known"
    );
    worker.update(World::desired(&["10.0.0.2"], vec![]));
    world
        .until("not known", |state| {
            World::condition(state, "TrustApplied") == "Unknown/GatewayNotReady"
        })
        .await;
}
