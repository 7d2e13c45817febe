//! The driver against a plain server that does as the path says.

use std::collections::HashSet;
use std::sync::Mutex;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn a_counted_run_sends_every_number_once() {
    let target = server().await;
    let numbers = Arc::new(Mutex::new(HashSet::new()));
    let seen = numbers.clone();
    let request = move |number| {
        assert!(seen.lock().unwrap().insert(number), "{number} came twice");
        get_path("/200")
    };

    let report = drive(&target, 4, Until::Count(100), request, |_, body| &body[..] == b"ok").await;

    assert_eq!((report.requests, report.ok, report.broken), (100, 100, 0));
    assert_eq!(*numbers.lock().unwrap(), (0..100).collect());
    assert!(report.p50 <= report.p99 && report.p99 <= report.max && report.max > Duration::ZERO);
    assert!(report.per_s > 0.0);
}

#[tokio::test]
async fn a_refusal_is_counted_by_its_status_and_is_not_ok() {
    let target = server().await;
    let request = |number| get_path(if number % 2 == 0 { "/200" } else { "/503" });

    let report = drive(&target, 2, Until::Count(10), request, |status, _| status == 200).await;

    assert_eq!((report.requests, report.ok), (10, 5));
    assert_eq!(report.statuses, BTreeMap::from([(200, 5), (503, 5)]));
}

#[tokio::test]
async fn a_server_that_is_away_breaks_requests_and_the_run_still_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = Target::plain(listener.local_addr().unwrap());
    drop(listener);

    let report = drive(&target, 2, Until::Count(6), |_| get_path("/200"), |_, _| true).await;

    assert_eq!((report.requests, report.ok, report.broken), (6, 0, 6));
    assert_eq!(report.max, Duration::ZERO);
}

#[tokio::test]
async fn a_timed_run_ends_when_its_time_is_over() {
    let target = server().await;
    let limit = Duration::from_millis(200);

    let report = drive(&target, 2, Until::Elapsed(limit), |_| get_path("/200"), |_, _| true).await;

    assert!(report.elapsed >= limit && report.elapsed < Duration::from_secs(5));
    assert!(report.ok > 0 && report.ok == report.requests);
}

/// Answers `ok` with the status that the path names.
async fn server() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = |Path(status): Path<u16>| async move {
        (axum::http::StatusCode::from_u16(status).unwrap(), "ok")
    };
    let router = Router::new().route("/{status}", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Target::plain(address)
}

fn get_path(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}
