//! What the writers are asked for, and those who wait for it.

use std::any::Any;
use std::pin::Pin;

use tokio::sync::oneshot;

use super::StoreError;
use super::db::Db;
use super::writer::Batch;

/// Something to do in a transaction. It may run twice: only what it writes counts.
pub(super) trait Order: Send + Sync + 'static {
    type Answer: Send + 'static;

    /// Whether it leases something, so that it is pointless once nobody waits for its answer.
    const FOR_CALLER: bool = false;

    /// Whether a commit of such orders alone leaves the write to the operating system: it then
    /// outlives this process, and is on the disk with the next commit of another order, which the
    /// writer's own probe makes every two seconds.
    const RELAXED: bool = false;

    /// The row that it locks. Orders of a kind run in the order of their keys.
    fn key(&self) -> &[u8] {
        &[]
    }

    /// What to do at once with an answer that nobody waited for.
    fn orphans(_answer: Self::Answer) -> Vec<Box<dyn Job>> {
        Vec::new()
    }

    fn run(
        &self,
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> impl Future<Output = Result<Self::Answer, StoreError>> + Send;

    /// Several at once: an answer for each, in their order.
    fn run_all(
        orders: &[Self],
        db: &mut Db<'_>,
        batch: &mut Batch,
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send
    where
        Self: Sized,
    {
        async move {
            let mut answers = Vec::with_capacity(orders.len());
            for order in orders {
                answers.push(order.run(db, batch).await?);
            }
            Ok(answers)
        }
    }
}

/// Orders of one kind and those who wait for them, with the type of the answer hidden.
pub(super) trait Job: Any + Send {
    fn orders(&self) -> usize;
    fn is_relaxed(&self) -> bool;
    /// Takes in a job of the same kind; gives back one of another.
    fn take_in(&mut self, other: Box<dyn Job>) -> Option<Box<dyn Job>>;
    fn split(self: Box<Self>) -> Vec<Box<dyn Job>>;
    fn run<'a>(
        &'a mut self,
        db: &'a mut Db<'_>,
        batch: &'a mut Batch,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;
    /// After the commit, never before. Gives what is to be done when nobody waited.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>) -> Vec<Box<dyn Job>>;
}

pub(super) struct Waiting<O: Order> {
    orders: Vec<O>,
    replies: Vec<oneshot::Sender<Result<O::Answer, StoreError>>>,
    /// Once it has run.
    answers: Vec<O::Answer>,
}

impl<O: Order> Waiting<O> {
    pub(super) fn of(
        order: O,
        reply: oneshot::Sender<Result<O::Answer, StoreError>>,
    ) -> Box<dyn Job> {
        Box::new(Self { orders: vec![order], replies: vec![reply], answers: Vec::new() })
    }

    /// Nobody waits for its answer.
    pub(super) fn unasked(order: O) -> Box<dyn Job> {
        Self::of(order, oneshot::channel().0)
    }

    /// Forgets orders that are pointless now, and sorts the others.
    fn tidy(&mut self) {
        let pairs = self.orders.drain(..).zip(self.replies.drain(..));
        let is_wanted = |reply: &oneshot::Sender<_>| !(O::FOR_CALLER && reply.is_closed());
        let mut pairs: Vec<_> = pairs.filter(|(_, reply)| is_wanted(reply)).collect();
        pairs.sort_by(|(one, _), (other, _)| one.key().cmp(other.key()));
        (self.orders, self.replies) = pairs.into_iter().unzip();
    }
}

impl<O: Order> Job for Waiting<O> {
    fn orders(&self) -> usize {
        self.orders.len()
    }

    fn is_relaxed(&self) -> bool {
        O::RELAXED
    }

    fn take_in(&mut self, other: Box<dyn Job>) -> Option<Box<dyn Job>> {
        if !(&*other as &dyn Any).is::<Self>() {
            return Some(other);
        }
        if let Ok(other) = (other as Box<dyn Any>).downcast::<Self>() {
            self.orders.extend(other.orders);
            self.replies.extend(other.replies);
        }
        None
    }

    fn split(self: Box<Self>) -> Vec<Box<dyn Job>> {
        let pairs = self.orders.into_iter().zip(self.replies);
        pairs.map(|(order, reply)| Self::of(order, reply)).collect()
    }

    fn run<'a>(
        &'a mut self,
        db: &'a mut Db<'_>,
        batch: &'a mut Batch,
    ) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>> {
        Box::pin(async move {
            self.tidy();
            self.answers = O::run_all(&self.orders, db, batch).await?;
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) -> Vec<Box<dyn Job>> {
        let mut answers = self.answers.into_iter();
        let mut orphans = Vec::new();
        for reply in self.replies {
            let answer =
                committed.clone().and_then(|()| answers.next().ok_or_else(StoreError::closed));
            // Whoever has gone away finds the outcome in the database.
            if let Err(Ok(answer)) = reply.send(answer) {
                orphans.extend(O::orphans(answer));
            }
        }
        orphans
    }
}

/// An order whose answer nobody waits for.
pub(super) fn unasked<O: Order>(order: O) -> Box<dyn Job> {
    Waiting::unasked(order)
}

/// What waits for the writers, by kind.
pub(super) type Group = Vec<Box<dyn Job>>;

/// Puts a job with those of its kind.
pub(super) fn merge(group: &mut Group, job: Box<dyn Job>) {
    let mut job = Some(job);
    for kind in &mut *group {
        job = job.and_then(|job| kind.take_in(job));
    }
    group.extend(job);
}

pub(super) fn orders_in(group: &[Box<dyn Job>]) -> usize {
    group.iter().map(|job| job.orders()).sum()
}
