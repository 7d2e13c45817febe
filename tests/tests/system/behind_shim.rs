//! The whole gateway over a token behind the fault shim: without a fault nobody sees it, and a
//! fault of one C_ function is told in time and heals by itself.

use std::time::Duration;

use harness::acquirer::{Failure, PinSide};
use harness::demo_keys::DemoKeys;
use harness::soft::pin::{PinFormat, open_pin};
use harness::world::{Link, Wanted, World};

use crate::support::{Counter, assert_refused, until};

const PAN: &str = "4761737909457820";

async fn translate(counter: &Counter) -> Result<String, Failure> {
    let block = counter.acquirer.pin_block("271828", PAN, PinFormat::Iso0).unwrap();
    let from = PinSide { key: "zpk.acquirer-a", format: "iso0", ksn: None };
    let to = PinSide { key: "zpk.billing", format: "iso0", ksn: None };
    let translated = counter.client.translate(PAN, &block, from, to).await?;
    let key = DemoKeys::load().value("zpk.billing");
    let block = hex::decode(&translated.pin_block).unwrap();
    Ok(open_pin(PinFormat::Iso0, &key, PAN, &block).unwrap())
}

#[tokio::test]
async fn a_gateway_works_over_the_shim_and_through_its_faults() {
    let world = World::start_as(Wanted { shim: true, ..Wanted::default() }).await.unwrap();
    let counter = Counter::a(&world);

    let before = world.shim_counts().unwrap();
    let well = translate(&counter).await.unwrap();
    let after = world.shim_counts().unwrap();
    let workers = world.workers();
    world.shim_control("* fail 0x30").await.unwrap();
    let away = translate(&counter).await;
    world.shim_control("").await.unwrap();
    until("well again", Duration::from_secs(10), async || translate(&counter).await.is_ok()).await;

    assert_eq!(well, "271828");
    // A health probe may have deciphered too.
    assert!(after["Decrypt"] > before["Decrypt"], "{before:?} {after:?}");
    let Err(Failure::Refused(answer)) = away else { panic!("{away:?}") };
    assert_refused(&answer, "hsm-unavailable");
    assert!(world.workers().iter().all(|worker| !workers.contains(worker)));
}

/// A refused login is never tried again: each further one brings the token nearer to its lock. A person
/// reads it in the audit log, in the figures and in the table of links.
#[tokio::test]
async fn a_refused_login_latches_and_is_told_where_people_look() {
    let world = World::start_as(Wanted { shim: true, ..Wanted::default() }).await.unwrap();
    let latched = "tollgate_hsm_latched{link=\"primary\"}";
    assert!(world.metric(latched).await.unwrap() < 0.5);

    world.shim_control("* fail 0xA0").await.unwrap();
    until("it is told", Duration::from_secs(10), async || {
        // Whoever asks meets the refusal, and so does the next start.
        let _ = translate(&Counter::a(&world)).await;
        world.metric(latched).await.unwrap() > 0.5
    })
    .await;

    until("it is on record", Duration::from_secs(5), async || {
        let events = world.audit().unwrap();
        events.iter().any(|event| {
            let note = event["note"].as_str().unwrap_or_default();
            event["event"]["type"] == "hsm.login" && note.contains("PinIncorrect")
        })
    })
    .await;
    world.shim_control("").await.unwrap();
    let workers = world.workers();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(world.workers().is_empty() && workers.is_empty(), "nobody tries again");
    let lost = world.metric("tollgate_hsm_sessions{link=\"primary\",state=\"lost\"}").await;
    assert!(lost.unwrap() > 1.5);
}

#[tokio::test]
async fn of_two_links_one_fails_alone_and_nobody_sees_it() {
    let wanted = Wanted { shim: true, second_link: true, ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    until("both serve", Duration::from_secs(10), async || {
        world.workers_of(Link::Primary).len() == 2
            && world.workers_of(Link::Backup).len() == 2
            && world.metric("tollgate_hsm_link_up").await.unwrap() > 1.5
    })
    .await;

    let before = world.shim_counts_of(Link::Backup).unwrap();
    world.shim_control_of(Link::Primary, "Decrypt fail 0x30").await.unwrap();
    for _ in 0..20 {
        assert_eq!(translate(&counter).await.unwrap(), "271828");
    }
    let after = world.shim_counts_of(Link::Backup).unwrap();
    world.shim_control_of(Link::Primary, "").await.unwrap();

    assert!(after["Decrypt"] >= before["Decrypt"] + 19, "{before:?} {after:?}");
}

/// One bit of each answer is wrong: no error tells of it, and a heartbeat does. Its workers are ended,
/// by name, and no other one is ready before the self-test is right.
#[tokio::test]
async fn a_token_that_answers_wrongly_is_found_out_and_not_used_until_it_is_right() {
    let edit = |table: &mut toml::Table| {
        let health = toml::Table::from_iter([
            ("every_ms".to_owned(), toml::Value::Integer(300)),
            ("sick_ms".to_owned(), toml::Value::Integer(300)),
        ]);
        table["hsm"].as_table_mut().unwrap().insert("health".into(), health.into());
    };
    let wanted = Wanted { shim: true, edit: Some(Box::new(edit)), ..Wanted::default() };
    let world = World::start_as(wanted).await.unwrap();
    let counter = Counter::a(&world);
    let closed = "tollgate_breaker_state{name=\"hsm\",state=\"closed\"}";
    let workers = world.workers();

    world.shim_control("Encrypt flip").await.unwrap();
    until("it is found out", Duration::from_secs(10), async || {
        world.metric("tollgate_wrong_answers_total{name=\"hsm\"}").await.unwrap() > 0.5
            && world.metric(closed).await.unwrap() < 0.5
    })
    .await;
    let away = translate(&counter).await;
    world.shim_control("").await.unwrap();
    until("it is right again", Duration::from_secs(10), async || {
        translate(&counter).await.is_ok_and(|pin| pin == "271828")
    })
    .await;

    let Err(Failure::Refused(answer)) = away else { panic!("{away:?}") };
    assert_refused(&answer, "hsm-unavailable");
    assert!(world.workers().iter().all(|worker| !workers.contains(worker)));
    let log = std::fs::read_to_string(world.dir().join("gateway.log")).unwrap();
    for worker in workers {
        let named = format!("\"pid\":{worker},");
        let told = |line: &str| {
            line.contains("it gave a wrong answer and was killed")
                && line.contains("\"link\":\"primary\"")
                && line.contains(&named)
        };
        assert!(log.lines().any(told), "{worker}");
    }
}
