use std::fs;

use uuid::Uuid;

use super::*;
use crate::sealing::{move_to, purge, seal};
use crate::{
    Actor, Chain, Event, EventType, Host, Label, Origin, Outcome, Resource, ResourceType,
    SegmentName, StreamId,
};

const BOUNDS: Bounds = Bounds { records: 100, time: Duration::from_secs(20) };

/// Records `from..to` of one stream, a second apart, as the segment of this number.
fn write(dir: &Path, chain: &mut Chain, number: u32, range: std::ops::Range<i64>) -> Segment {
    let boot = chain.head().stream.boot();
    let host = Host::new(Label::new("gateway-1"), boot);
    let mut lines = Vec::new();
    for at in range {
        let kind = if at % 2 == 0 { EventType::PinTranslate } else { EventType::PinVerify };
        let outcome = if at % 100 == 7 { Outcome::Failure } else { Outcome::Success };
        let event = Event::new(
            Actor::client(Label::new(&format!("client-{}", at % 3))),
            kind,
            Timestamp::from_second(1_800_000_000 + at).unwrap(),
            outcome,
            Origin::inside(&host),
            Resource::new(ResourceType::Key, Label::new(&format!("key-{}", at / 500))),
        );
        chain.append(event.request_id(Label::new(&format!("request-{at}"))), &mut lines);
    }
    let name = SegmentName { boot, number };
    let path = dir.join(name.open());
    fs::write(&path, lines).unwrap();
    Segment { name, path, is_sealed: false }
}

fn log(dir: &Path) -> (Chain, Vec<Segment>) {
    let stream = StreamId::new("tollgate", "gateway-1", Uuid::now_v7()).unwrap();
    let mut chain = Chain::new(stream, None);
    let first = seal(&write(dir, &mut chain, 1, 0..2_500)).unwrap();
    let second = write(dir, &mut chain, 2, 2_500..3_000);
    (chain, vec![first, second])
}

fn requests(found: &Found) -> Vec<String> {
    let id =
        |line: &String| Record::parse(line.as_bytes()).unwrap().request_id.unwrap().to_string();
    found.records.iter().map(id).collect()
}

#[test]
fn each_filter_finds_what_it_names_in_sealed_and_in_open_segments() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path());
    let find = |filter| requests(&search(dir.path(), &filter, None, BOUNDS).unwrap());
    let text = |text: &str| Some(text.to_owned());

    for at in [0, 1_234, 2_499, 2_500, 2_999] {
        let request_id = Some(format!("request-{at}"));
        assert_eq!(find(Filter { request_id, ..Filter::default() }), [format!("request-{at}")]);
    }
    let failures = find(Filter { outcome: text("failure"), ..Filter::default() });
    assert_eq!(failures.len(), 30);
    let both = Filter {
        outcome: text("failure"),
        actor: text("client-0"),
        event: text("pin.*"),
        ..Filter::default()
    };
    assert_eq!(find(both.clone()).len(), 10);
    assert_eq!(find(Filter { event: text("pin.translate"), ..both.clone() }), [""; 0]);
    assert_eq!(find(Filter { event: text("pi.*"), ..both }), [""; 0]);
    let time = |at: i64| Timestamp::from_second(1_800_000_000 + at).ok();
    let between = find(Filter { from: time(2_498), to: time(2_501), ..Filter::default() });
    assert_eq!(between, ["request-2498", "request-2499", "request-2500", "request-2501"]);
    let key = find(Filter { resource: text("key-5"), ..Filter::default() });
    assert_eq!(key.len(), 100);
    assert_eq!(find(Filter { resource: text("key-6"), ..Filter::default() }), [""; 0]);
}

#[test]
fn pages_follow_one_another_without_a_gap_and_without_a_repeat() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path());
    let filter = Filter { actor: Some("client-1".into()), ..Filter::default() };

    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let bounds = Bounds { records: 77, ..BOUNDS };
        let page = search(dir.path(), &filter, after, bounds).unwrap();
        all.extend(requests(&page));
        assert!(page.records.len() <= 77);
        match page.next {
            Some(next) => after = Some(next.to_string().parse().unwrap()),
            None => break,
        }
    }

    let expected: Vec<_> =
        (0..3_000).filter(|at| at % 3 == 1).map(|at| format!("request-{at}")).collect();
    assert_eq!(all, expected);
}

#[test]
fn a_search_whose_time_is_over_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    log(dir.path());
    let filter = Filter { request_id: Some("request-2999".into()), ..Filter::default() };

    let (mut after, mut pages) = (None, 0);
    let found = loop {
        let bounds = Bounds { records: 10, time: Duration::ZERO };
        let page = search(dir.path(), &filter, after, bounds).unwrap();
        pages += 1;
        match page.next {
            Some(next) => assert!(pages < 10 && Some(next) > after, "no progress"),
            None => break page,
        }
        after = page.next;
    };

    assert_eq!(requests(&found), ["request-2999"]);
    assert!(pages > 1);
}

#[test]
fn a_sealed_segment_says_what_it_holds_and_can_be_moved_and_purged() {
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, segments_made) = log(dir.path());

    let index = Index::read(&segments_made[0]).unwrap();
    let moved = move_to(&segments_made[0], archive.path()).unwrap();

    assert_eq!((index.first_seq, index.last_seq), (1, 2_500));
    assert_eq!(index.to_us - index.from_us, 2_499_000_000);
    assert_eq!(index.blocks.len(), 3);
    assert_eq!(segments(dir.path()).unwrap(), segments_made[1..]);
    assert_eq!(Index::read(&moved).unwrap(), index);
    purge(&moved).unwrap();
    assert_eq!(fs::read_dir(archive.path()).unwrap().count(), 0);
}

#[test]
fn what_is_not_there_is_hardly_ever_looked_for_in_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let (_, made) = log(dir.path());
    let index = Index::read(&made[0]).unwrap();

    let seems = (0..10_000).filter(|at| {
        let word = Word::new("request_id", &format!("other-{at}"));
        index.blocks.iter().any(|block| block.may_hold(word))
    });

    assert!(seems.count() < 100);
}
