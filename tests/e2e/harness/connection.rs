//! An accepted connection of a device: requests, events, and how and when it was closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::tungstenite::Message;

use super::device::{Bridge, PATIENCE, Socket};

// Close codes for what no close frame said.
const NO_CODE: u16 = 1005;
const ABNORMAL: u16 = 1006;

#[derive(Default)]
struct State {
    calls: u64,
    pending: HashMap<String, oneshot::Sender<Result<Value, Value>>>,
    events: Vec<Value>,
}

/// An accepted connection. A task of its own reads it, so that a close is noticed whenever it comes.
pub struct DeviceConn {
    hello: Value,
    state: Arc<Mutex<State>>,
    outgoing: mpsc::UnboundedSender<Message>,
    pongs: watch::Receiver<u64>,
    closed: watch::Receiver<Option<(u16, String)>>,
}

impl DeviceConn {
    pub fn start(mut socket: Socket, hello: Value, bridge: Option<Bridge>) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (outgoing, mut to_send) = mpsc::unbounded_channel::<Message>();
        let (pong, pongs) = watch::channel(0u64);
        let (close, closed) = watch::channel(None);
        let shared = Arc::clone(&state);
        // It ends with the last sender, and lets go of the bridge only then.
        tokio::spawn(async move {
            let _bridge = bridge;
            let end = loop {
                tokio::select! {
                    message = to_send.recv() => {
                        let Some(message) = message else {
                            let _ = socket.close(None).await;
                            break drain(&mut socket).await;
                        };
                        if socket.send(message).await.is_err() {
                            // Why is in what the other side said before.
                            break drain(&mut socket).await;
                        }
                    }
                    item = socket.next() => match message(item) {
                        Ok(Message::Text(text)) => lock(&shared).take_in(&text),
                        Ok(Message::Pong(_)) => pong.send_modify(|n| *n += 1),
                        Ok(_) => {}
                        Err(end) => break end,
                    },
                }
            };
            // Callers that wait get an error, not silence.
            lock(&shared).pending.clear();
            close.send_replace(Some(end));
            say_goodbye(&mut socket).await;
        });
        Self {
            hello,
            state,
            outgoing,
            pongs,
            closed,
        }
    }

    /// What the gateway said on accepting: `auth.deviceToken`, `auth.scopes`, ...
    pub fn hello(&self) -> &Value {
        &self.hello
    }

    /// One request. `Err` holds the gateway's error object, or `{"closed": ...}`.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value, Value> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = lock(&self.state);
            state.calls += 1;
            let id = format!("r{}", state.calls);
            state.pending.insert(id.clone(), answer);
            id
        };
        let sent = self
            .outgoing
            .send(Message::text(request(&id, method, params).to_string()));
        if sent.is_err() {
            return Err(json!({"closed": format!("{:?}", self.close_seen())}));
        }
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(json!({"closed": format!("{:?}", self.close_seen())})),
            Err(_) => panic!("no answer to {method} within {PATIENCE:?}"),
        }
    }

    /// The events so far, in order.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.state).events.clone()
    }

    /// Whether the connection lives, proved by a ping and its pong.
    pub async fn is_open(&self) -> bool {
        let mut pongs = self.pongs.clone();
        let before = *pongs.borrow_and_update();
        if self.outgoing.send(Message::Ping(Vec::new().into())).is_err() {
            return false;
        }
        let pong = pongs.wait_for(|n| *n > before);
        matches!(tokio::time::timeout(PATIENCE, pong).await, Ok(Ok(_)))
    }

    /// The close so far, if any: (code, reason).
    pub fn close_seen(&self) -> Option<(u16, String)> {
        self.closed.borrow().clone()
    }

    /// Waits until the other side closes the socket: (code, reason).
    pub async fn closed(&self) -> (u16, String) {
        let mut closed = self.closed.clone();
        let seen = tokio::time::timeout(Duration::from_secs(60), closed.wait_for(Option::is_some)).await;
        match seen {
            Ok(Ok(end)) => end.clone().unwrap_or_default(),
            _ => panic!("the socket was not closed within a minute"),
        }
    }
}

impl std::fmt::Debug for DeviceConn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceConn({})", self.hello["auth"])
    }
}

impl State {
    fn take_in(&mut self, text: &str) {
        let mut frame: Value = serde_json::from_str(text).expect("a frame that is JSON");
        if frame["type"] == "event" {
            self.events.push(frame);
            return;
        }
        let caller = frame["id"].as_str().and_then(|id| self.pending.remove(id));
        if let Some(caller) = caller {
            let answer = if frame["ok"] == true {
                Ok(frame["payload"].take())
            } else {
                Err(frame["error"].take())
            };
            // The caller may have given up.
            let _ = caller.send(answer);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|e| e.into_inner())
}

/// The next JSON frame, or how the socket was closed: (code, reason).
pub async fn next_frame(socket: &mut Socket) -> Result<Value, (u16, String)> {
    loop {
        if let Message::Text(text) = message(socket.next().await)? {
            return Ok(serde_json::from_str(&text).expect("a frame that is JSON"));
        }
    }
}

fn message<E: std::fmt::Display>(item: Option<Result<Message, E>>) -> Result<Message, (u16, String)> {
    match item {
        Some(Ok(Message::Close(Some(frame)))) => Err((frame.code.into(), frame.reason.to_string())),
        Some(Ok(Message::Close(None))) => Err((NO_CODE, String::new())),
        Some(Ok(message)) => Ok(message),
        Some(Err(e)) => Err((ABNORMAL, e.to_string())),
        None => Err((ABNORMAL, "ended without a close frame".into())),
    }
}

/// Reads on to the end of the connection: how it was closed.
pub async fn drain(socket: &mut Socket) -> (u16, String) {
    let reading = async {
        loop {
            if let Err(end) = message(socket.next().await) {
                return end;
            }
        }
    };
    let silent = || (ABNORMAL, "not closed".to_owned());
    tokio::time::timeout(Duration::from_secs(5), reading)
        .await
        .unwrap_or_else(|_| silent())
}

/// Reading on sends our half of the goodbye: without it the gateway logs 1006, whatever it had said itself.
pub async fn say_goodbye(socket: &mut Socket) {
    let rest = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), rest).await;
}

pub fn request(id: &str, method: &str, params: Value) -> Value {
    json!({"type": "req", "id": id, "method": method, "params": params})
}
