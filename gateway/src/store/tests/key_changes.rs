//! Two officers, one table: who may decide what, in which order it is applied, what is wiped.

use super::*;

fn change(kind: KeyChangeKind) -> NewKeyChange {
    let import = (kind == KeyChangeKind::Import).then(|| KeyImport {
        profile: "{}".into(),
        kbpk: "kek.a".into(),
        kbpk_version: None,
        block: Some("D0112P0TE00N0000".into()),
    });
    NewKeyChange {
        kind,
        label: "zpk.a".into(),
        version: 2,
        import,
        overlap_s: None,
        reason: "yearly".into(),
        proposer: "ann".into(),
        life: Duration::from_secs(3600),
        proposals_max: 3,
    }
}

impl World {
    async fn propose(&self, kind: KeyChangeKind) -> KeyChange {
        let proposed = self.store.propose_key_change(change(kind)).await.unwrap();
        let Proposed::Made(change) = proposed else { panic!("{proposed:?}") };
        *change
    }

    async fn decide(&self, number: i64, decision: Decision, officer: &str) -> Decided {
        self.store.decide_key_change(number, decision, officer, "seen").await.unwrap()
    }

    async fn state(&self, number: i64) -> KeyChangeState {
        self.store.key_change(number).await.unwrap().unwrap().state
    }
}

async fn only_another_officer_approves_or_refuses_and_only_the_proposer_withdraws(on: On) {
    let world = World::new(on).await;
    let number = world.propose(KeyChangeKind::Retire).await.number;

    for (decision, officer) in
        [(Decision::Approve, "ann"), (Decision::Refuse, "ann"), (Decision::Withdraw, "ben")]
    {
        let decided = world.decide(number, decision, officer).await;
        assert!(matches!(decided, Decided::NotBy(_)), "{decision:?} {decided:?}");
    }
    assert_eq!(world.state(number).await, KeyChangeState::Proposed);

    let decided = world.decide(number, Decision::Approve, "ben").await;
    let Decided::Done(approved) = decided else { panic!("{decided:?}") };
    let told = (approved.state, approved.proposer.as_str(), approved.decider.as_deref());
    assert_eq!(told, (KeyChangeState::Approved, "ann", Some("ben")));
    let again = world.decide(number, Decision::Approve, "eve").await;
    assert!(matches!(again, Decided::NotOpen(_)), "{again:?}");
    assert_eq!(world.decide(99, Decision::Approve, "ben").await, Decided::Unknown);
}

/// The table itself refuses what the code must not do.
async fn no_row_can_say_that_one_officer_was_two(on: On) {
    let world = World::new(on).await;
    world.propose(KeyChangeKind::Retire).await;
    let mut intruder = world.intruder().await;

    for forged in [
        "UPDATE key_change SET state = 'approved', decider = 'ann'",
        "UPDATE key_change SET state = 'approved'",
    ] {
        assert!(query(forged).execute(&mut intruder.db()).await.is_err(), "{forged}");
    }
}

async fn a_compromise_waits_for_nobody_and_is_applied_before_what_was_approved_earlier(on: On) {
    let world = World::new(on).await;
    let retire = world.propose(KeyChangeKind::Retire).await.number;
    world.decide(retire, Decision::Approve, "ben").await;

    let compromise = world.propose(KeyChangeKind::Compromise).await;

    assert_eq!((compromise.state, compromise.decider), (KeyChangeState::Approved, None));
    let mut order = Vec::new();
    for next in world.store.approved_key_changes().await.unwrap() {
        let given = world.store.number_key_change(next.number, 7).await.unwrap();
        world.store.end_key_change(next.number, None).await.unwrap();
        order.push((next.number, given));
    }
    assert_eq!(order, [(compromise.number, 8), (retire, 9)]);
    assert!(world.store.approved_key_changes().await.unwrap().is_empty());
}

/// A link that was away must get what the others have in the order in which they got it.
async fn what_is_in_force_somewhere_keeps_its_number_and_goes_before_a_compromise(on: On) {
    let world = World::new(on).await;
    let mut numbers = Vec::new();
    for (kind, above) in [(KeyChangeKind::Import, 4), (KeyChangeKind::Retire, 0)] {
        let number = world.propose(kind).await.number;
        world.decide(number, Decision::Approve, "ben").await;
        numbers.push((number, world.store.number_key_change(number, above).await.unwrap()));
    }
    let [(import, first), (retire, second)] = numbers[..] else { panic!("{numbers:?}") };

    world.store.note_key_change_made(retire).await.unwrap();
    let compromise = world.propose(KeyChangeKind::Compromise).await.number;
    let third = world.store.number_key_change(compromise, second).await.unwrap();
    let again = world.store.number_key_change(compromise, second).await.unwrap();
    let passed = world.store.number_key_change(import, third).await.unwrap();
    let fixed = world.store.number_key_change(retire, 99).await;

    assert_eq!((first, second, third, again, passed), (5, 6, 7, 7, 8));
    assert!(fixed.is_err(), "{fixed:?}");
    let after = world.after_a_crash().await;
    let approved = after.store.approved_key_changes().await.unwrap();
    let order: Vec<_> = approved.iter().map(|it| (it.number, it.made_at.is_some())).collect();
    assert_eq!(order, [(retire, true), (compromise, false), (import, false)]);
}

async fn a_key_block_is_gone_when_its_change_has_ended_however_it_ended(on: On) {
    let world = World::new(on).await;
    let block = |change: &KeyChange| change.import.as_ref().unwrap().block.clone();

    let applied = world.propose(KeyChangeKind::Import).await;
    let refused = world.propose(KeyChangeKind::Import).await;
    let withdrawn = world.propose(KeyChangeKind::Import).await;
    assert!(block(&applied).is_some());
    world.decide(applied.number, Decision::Approve, "ben").await;
    let ended = world.store.end_key_change(applied.number, None).await.unwrap();
    world.decide(refused.number, Decision::Refuse, "ben").await;
    world.decide(withdrawn.number, Decision::Withdraw, "ann").await;
    let late = world.propose(KeyChangeKind::Import).await;
    world.clock.advance(Duration::from_secs(3600));
    let expired = world.store.expire_key_changes().await.unwrap();

    assert_eq!(ended.state, KeyChangeState::Applied);
    let expired: Vec<_> = expired.iter().map(|change| (change.number, change.state)).collect();
    assert_eq!(expired, [(late.number, KeyChangeState::Expired)]);
    for change in world.store.key_changes(10).await.unwrap() {
        assert_eq!(block(&change), None, "{change:?}");
    }
    world.store.close().await;
    if on == On::Postgres {
        // A server's files are its own.
        return;
    }
    let file = std::fs::read(world.directory.path().join("tollgate.db")).unwrap();
    let found = file.windows(16).any(|bytes| bytes == b"D0112P0TE00N0000");
    assert!(!found, "the block is still in the file");
}

async fn proposals_are_bounded_and_a_late_decision_is_none(on: On) {
    let world = World::new(on).await;
    let first = world.propose(KeyChangeKind::Activate).await;
    for _ in 0..2 {
        world.propose(KeyChangeKind::Activate).await;
    }

    let fourth = world.store.propose_key_change(change(KeyChangeKind::Activate)).await.unwrap();

    assert_eq!(fourth, Proposed::Full);
    world.propose(KeyChangeKind::Compromise).await;
    world.clock.advance(Duration::from_secs(3600));
    let late = world.decide(first.number, Decision::Approve, "ben").await;
    assert!(matches!(late, Decided::NotOpen(_)), "{late:?}");
}

async fn an_approved_change_and_its_number_outlive_a_crash(on: On) {
    let world = World::new(on).await;
    let import = world.propose(KeyChangeKind::Import).await;
    world.decide(import.number, Decision::Approve, "ben").await;
    let given = world.store.number_key_change(import.number, 41).await.unwrap();

    let next = world.after_a_crash().await.store.approved_key_changes().await.unwrap().remove(0);

    assert_eq!((next.number, next.register_change), (import.number, Some(given)));
    assert!(next.import.unwrap().block.is_some());
}

both! {
    only_another_officer_approves_or_refuses_and_only_the_proposer_withdraws,
    no_row_can_say_that_one_officer_was_two,
    a_compromise_waits_for_nobody_and_is_applied_before_what_was_approved_earlier,
    what_is_in_force_somewhere_keeps_its_number_and_goes_before_a_compromise,
    a_key_block_is_gone_when_its_change_has_ended_however_it_ended,
    proposals_are_bounded_and_a_late_decision_is_none,
    an_approved_change_and_its_number_outlive_a_crash,
}
