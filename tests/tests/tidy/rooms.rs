//! What each room of the gateway may import: of the other rooms only what is listed, of the crates
//! everything but what is listed. ARCHITECTURE.md draws the same table.

use std::collections::BTreeSet;

use crate::code::{code, paths, without_tests};
use crate::files::{File, none, texts};

/// One row.
struct Room {
    name: &'static str,
    /// Rooms, or parts of them, that it may import. All others are closed to it.
    opens: &'static [&'static str],
    /// Crates, or parts of them, that it never imports.
    never: &'static [&'static str],
}

const SOCKETS: &str = "tokio::net";

const ROOMS: &[Room] = &[
    Room {
        name: "config",
        // The links own the sections of their parts; the edge owns the one parser of identities.
        opens: &[
            "links::Role",
            "links::breaker::BreakerConfig",
            "links::health::HealthConfig",
            "links::retry::RetryConfig",
            "edge::identity",
        ],
        never: &["sqlx", "axum", "rustls", "tokio_rustls", "reqwest", SOCKETS],
    },
    Room {
        name: "edge",
        // Limits and files come from its configuration; it counts what it refuses.
        opens: &["config", "telemetry"],
        never: &["hsm_adapter", "sqlx", "reqwest"],
    },
    Room {
        name: "wire",
        // A problem says why the edge refused; an order carries the store's priority, a plain enum, and
        // a list what the store lists by.
        opens: &[
            "edge::BodyRefused",
            "edge::Limited",
            "edge::NotAdmitted",
            "edge::RateLimit",
            "store::LIST_MAX",
            "store::ListFilter",
            "store::Priority",
            "store::Status",
        ],
        never: &[
            SOCKETS,
            "std::net",
            "rustls",
            "tokio_rustls",
            "hyper",
            "hyper_util",
            "sqlx",
            "reqwest",
        ],
    },
    Room {
        name: "routes",
        opens: &["audit", "config", "edge", "guard", "links", "relay", "store::Status", "wire"],
        never: &["sqlx", "rustls", "tokio_rustls", "reqwest", "hyper", "hyper_util", SOCKETS],
    },
    Room {
        name: "relay",
        // Only the amount: what a biller is sent is relay's own form, not a request body.
        opens: &[
            "audit::AuditLog",
            // What the log says of payments that the database must know.
            "audit::Payment",
            "config",
            "guard",
            "links",
            "store",
            "telemetry",
            "wire::Amount",
        ],
        never: &["axum", "sqlx", "rustls", "tokio_rustls", "reqwest", SOCKETS],
    },
    Room {
        name: "guard",
        // Of relay only the index key, under which a card is known.
        opens: &["audit::AuditLog", "config", "links", "relay::keys", "store", "telemetry"],
        never: &["axum", "sqlx", "rustls", "tokio_rustls", "reqwest", SOCKETS],
    },
    Room {
        name: "officers",
        // It decides what becomes of a key, and asks the worker, which alone can open a key block.
        opens: &["audit::AuditLog", "config", "links", "store"],
        never: &["axum", "sqlx", "rustls", "tokio_rustls", "reqwest", SOCKETS],
    },
    Room { name: "links", opens: &["telemetry"], never: &["axum", "sqlx"] },
    Room {
        name: "store",
        // Of the adapter only the text of an error: it holds sealed rows and has nothing to open
        // them with.
        opens: &["config", "hsm_adapter::worker::chain", "telemetry"],
        never: &["hsm_adapter", "aes_gcm", "axum", "reqwest", "rustls", "tokio_rustls"],
    },
    Room {
        name: "audit",
        // It wraps the other rooms: facts of the peer, the slug of a problem, never a body.
        opens: &["config", "edge", "telemetry", "wire::problem"],
        never: &["hsm_adapter", "sqlx", "reqwest", "rustls", "tokio_rustls"],
    },
    Room {
        name: "siem",
        // It reads the files behind the writer, and of the log only what is durable.
        opens: &["audit::AuditLog", "audit::followed_by", "config", "links::jitter", "telemetry"],
        never: &["hsm_adapter", "sqlx", "axum", "hyper", "reqwest"],
    },
    Room {
        name: "check",
        // Preflight: like `app`, it looks at every part, and at nothing that a request brings.
        opens: &[
            // The role matrix, of both listeners.
            "admin::ACCESS",
            "app",
            // The audit key signs evidence as it signs the log.
            "checkpoint_key",
            "config",
            "edge",
            "links",
            // Keys of several links are compared as a running gateway does it.
            "officers::difference",
            "officers::substitutions",
            "relay",
            "routes::openapi",
            "siem",
            "store",
        ],
        never: &["axum", "sqlx", "reqwest", SOCKETS],
    },
    Room {
        name: "admin",
        opens: &[
            "audit",
            "breaker_desk",
            "config",
            "edge",
            "links",
            "officers",
            "relay",
            "routes::openapi",
            // The words of a key's change; its rows come from `officers`.
            "store::Decided",
            "store::Decision",
            "store::KeyChange",
            "store::KeyChangeKind",
            "store::KeyChangeState",
            "store::Proposed",
            // The queue as operators see it; its rows come from `relay`.
            "store::Cell",
            "store::Listed",
            "store::OpenDecision",
            "store::Operated",
            "store::Priority",
            "store::QueueStats",
            "store::Shown",
            "store::StandingControl",
            "store::Status",
            "store::Told",
            "store::StoreError",
            "telemetry",
            "wire::audit_orders",
            "wire::body",
            "wire::key_orders",
            "wire::problem",
            "wire::queue_orders",
            "wire::reason",
        ],
        never: &["sqlx", "rustls", "tokio_rustls", "reqwest", "hyper", "hyper_util", SOCKETS],
    },
    Room {
        name: "telemetry",
        opens: &[],
        never: &["hsm_adapter", "compliance", "sqlx", "axum", "reqwest", "rustls", "tokio_rustls"],
    },
];

/// Every import of the file that its room's row does not allow.
fn trespasses(file: &File) -> Vec<String> {
    let inside =
        file.path.strip_prefix(ROOT).expect("only files of the gateway's sources are read");
    let Some((room, _)) = inside.split_once('/') else { return Vec::new() };
    let Some(row) = ROOMS.iter().find(|row| row.name == room) else {
        return vec![format!("{}: room {room:?} has no row in tidy/rooms.rs", file.path)];
    };
    let module = inside.trim_end_matches(".rs").trim_end_matches("/mod").replace('/', "::");
    let mut found = Vec::new();
    for (line, path) in paths(&without_tests(&code(&file.text).text)) {
        let is_open = |path: &str| row.opens.iter().any(|part| below(path, part));
        let bad = match from_crate_root(&module, &path) {
            Some(local) => !below(&local, room) && !is_open(&local),
            None => {
                let all = path.strip_suffix("::*");
                let is_in =
                    |part: &&str| below(&path, part) || all.is_some_and(|all| below(part, all));
                row.never.iter().any(is_in) && !is_open(&path)
            }
        };
        if bad {
            found.push(format!("{}:{line}: {room} imports {path}", file.path));
        }
    }
    found
}

/// The path from the crate's root, for one that begins with `crate`, `self` or `super`.
fn from_crate_root(module: &str, path: &str) -> Option<String> {
    let mut segments = path.split("::").peekable();
    let mut at: Vec<&str> = match *segments.peek()? {
        "crate" => Vec::new(),
        "self" | "super" => module.split("::").collect(),
        _ => return None,
    };
    while let Some(segment) = segments.next_if(|s| matches!(*s, "crate" | "self" | "super")) {
        if segment == "super" {
            at.pop();
        }
    }
    at.extend(segments);
    Some(at.join("::"))
}

/// Whether the path is the part or something in it.
fn below(path: &str, part: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Tests may look over every border.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let stem = name.trim_end_matches(".rs");
    path.contains("/tests/")
        || ["tests", "test_world"].contains(&stem)
        || ["_tests", "_test"].iter().any(|ending| stem.ends_with(ending))
}

const ROOT: &str = "gateway/src/";

#[test]
fn every_room_imports_only_what_is_open_to_it() {
    let mut files = texts(ROOT, &[".rs"]);
    files.retain(|file| !is_test(&file.path));

    let found: Vec<String> = files.iter().flat_map(trespasses).collect();

    none(&found);
}

#[test]
fn every_row_is_about_a_room_that_exists() {
    let files = texts(ROOT, &[".rs"]);

    let inside = files.iter().filter_map(|file| file.path[ROOT.len()..].split_once('/'));
    let rooms: BTreeSet<&str> = inside.map(|(room, _)| room).collect();

    assert_eq!(rooms, ROOMS.iter().map(|row| row.name).collect());
}

#[test]
fn an_import_over_a_border_is_found_however_it_is_written() {
    for (path, text) in [
        ("edge/tls.rs", "use hsm_adapter::vocabulary::Pan;"),
        ("edge/tls.rs", "use crate::{config, store::Status};"),
        ("edge/tls.rs", "use super::super::relay::Relay;"),
        ("edge/mod.rs", "pub use super::wire;"),
        ("edge/mod.rs", "use crate::*;"),
        ("edge/mod.rs", "use crate as root;"),
        ("wire/object.rs", "fn f(_: &tokio::net::TcpStream) {}"),
        ("wire/object.rs", "use std::{fmt, net::IpAddr};"),
        ("wire/object.rs", "use tokio as t;"),
        ("wire/object.rs", "use crate::store::Store;"),
        ("routes/deep/pin.rs", "extern crate sqlx;"),
        ("links/retry.rs", "fn f() -> axum::Error { todo() }"),
        ("relay/mod.rs", "use crate::wire::orders;"),
        ("store/row.rs", "#[derive(hsm_adapter::Open)]\nstruct Row;"),
        ("audit/layer.rs", "use crate::wire;"),
        ("kitchen/sink.rs", ""),
    ] {
        let file = File { path: format!("{ROOT}{path}"), text: text.into() };

        let found = trespasses(&file);

        assert_eq!(found.len(), 1, "{path} with {text:?}: {found:?}");
    }
}

#[test]
fn an_import_inside_the_borders_is_no_finding() {
    for (path, text) in [
        ("edge/tls.rs", "use super::listener::Listener;\nuse crate::edge::tls::Loaded;"),
        ("edge/tls.rs", "use crate::{config::TlsConfig, telemetry::metrics as figures};"),
        ("edge/tls.rs", "// use sqlx::Row;\nconst A: &str = \"crate::store\";"),
        ("edge/tls.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}"),
        ("links/token.rs", "use hsm_adapter::client::TokenLink;"),
        ("app.rs", "use crate::{edge, relay, store};"),
    ] {
        let file = File { path: format!("{ROOT}{path}"), text: text.into() };

        let found = trespasses(&file);

        none(&found);
    }
    assert!(
        is_test("gateway/src/store/tests/lanes.rs") && is_test("gateway/src/edge/tls_tests.rs")
    );
    assert!(!is_test("gateway/src/store/lane.rs"));
}
