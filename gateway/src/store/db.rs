//! One statement, two databases: SQLite and PostgreSQL under the same orders.
//!
//! Statements are written once, with `$1` for what is bound and in the words that both know; where
//! the databases differ, a [`Sql`] has a text for each. What is bound and what is read has one of
//! the few types of [`Value`]: whole numbers are `bigint` everywhere.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{
    Arguments, AssertSqlSafe, Connection as _, Decode, Postgres, Row as _, SqlSafeStr, SqlStr,
    Sqlite, Type,
};
use uuid::Uuid;

use super::StoreError;

/// A statement's text.
#[derive(Debug, Clone)]
pub(super) enum Sql {
    /// In words that both know.
    Both(&'static str),
    /// Where they differ.
    Each { sqlite: &'static str, postgres: &'static str },
    /// Made of constants for a number of rows.
    Rows(Arc<str>),
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self::Both(text)
    }
}

impl Sql {
    fn text(self, database: Kind) -> SqlStr {
        match (self, database) {
            (Self::Both(text), _)
            | (Self::Each { sqlite: text, .. }, Kind::Sqlite)
            | (Self::Each { postgres: text, .. }, Kind::Postgres) => text.into_sql_str(),
            (Self::Rows(text), _) => AssertSqlSafe(text).into_sql_str(),
        }
    }
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Sqlite,
    Postgres,
}

/// What can be bound.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(Option<i64>),
    Bool(Option<bool>),
    Text(Option<String>),
    Bytes(Option<Vec<u8>>),
    Id(Option<Uuid>),
    /// A set: `IN (SELECT value FROM json_each($1))` in SQLite, `= ANY ($1)` in PostgreSQL.
    Ints(Vec<i64>),
    /// A set likewise.
    Texts(Vec<String>),
}

macro_rules! value_from {
    ($($from:ty => |$it:ident| $to:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($it: $from) -> Self {
                $to
            }
        })*
    };
}

impl Value {
    /// Nothing, of the same type.
    fn absent(&self) -> Self {
        match self {
            Self::Int(_) => Self::Int(None),
            Self::Bool(_) => Self::Bool(None),
            Self::Text(_) => Self::Text(None),
            Self::Bytes(_) => Self::Bytes(None),
            Self::Id(_) => Self::Id(None),
            Self::Ints(_) => Self::Ints(Vec::new()),
            Self::Texts(_) => Self::Texts(Vec::new()),
        }
    }
}

value_from! {
    i64 => |it| Self::Int(Some(it));
    Option<i64> => |it| Self::Int(it);
    u32 => |it| Self::Int(Some(it.into()));
    Option<u32> => |it| Self::Int(it.map(i64::from));
    bool => |it| Self::Bool(Some(it));
    Option<bool> => |it| Self::Bool(it);
    &str => |it| Self::Text(Some(it.to_owned()));
    &String => |it| Self::Text(Some(it.clone()));
    Option<String> => |it| Self::Text(it);
    Option<&str> => |it| Self::Text(it.map(str::to_owned));
    &[u8] => |it| Self::Bytes(Some(it.to_owned()));
    Option<&[u8]> => |it| Self::Bytes(it.map(<[u8]>::to_owned));
    Uuid => |it| Self::Id(Some(it));
    Option<Uuid> => |it| Self::Id(it);
    Vec<i64> => |it| Self::Ints(it);
    Vec<String> => |it| Self::Texts(it);
}

/// Begins a statement.
pub(super) fn query(sql: impl Into<Sql>) -> Query {
    Query { sql: sql.into(), values: Vec::new() }
}

/// A statement and what is bound to it.
#[derive(Debug)]
pub(super) struct Query {
    sql: Sql,
    values: Vec<Value>,
}

/// Runs a statement on whichever connection it is, and wraps what comes.
macro_rules! run {
    ($query:ident, $db:ident, |$built:ident, $connection:ident| $call:expr, $wrap:ident) => {
        match $db {
            Db::Sqlite(connection) => {
                let arguments = sqlite_arguments($query.values)?;
                let $built =
                    sqlx::query_with::<Sqlite, _>($query.sql.text(Kind::Sqlite), arguments);
                let $connection = &mut **connection;
                $wrap!($call.await?, Sqlite)
            }
            Db::Postgres(connection) => {
                let arguments = postgres_arguments($query.values)?;
                let $built =
                    sqlx::query_with::<Postgres, _>($query.sql.text(Kind::Postgres), arguments);
                let $connection = &mut **connection;
                $wrap!($call.await?, Postgres)
            }
        }
    };
}

macro_rules! count {
    ($done:expr, $kind:ident) => {
        $done.rows_affected()
    };
}

macro_rules! one {
    ($row:expr, $kind:ident) => {
        $row.map(Row::$kind)
    };
}

macro_rules! many {
    ($rows:expr, $kind:ident) => {
        $rows.into_iter().map(Row::$kind).collect()
    };
}

impl Query {
    pub(super) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    fn bind_all(self, values: Vec<Value>) -> Self {
        Self { values, ..self }
    }

    /// The number of rows that it changed.
    pub(super) async fn execute(self, db: &mut Db<'_>) -> Result<u64, StoreError> {
        Ok(run!(self, db, |query, connection| query.execute(connection), count))
    }

    pub(super) async fn optional(self, db: &mut Db<'_>) -> Result<Option<Row>, StoreError> {
        Ok(run!(self, db, |query, connection| query.fetch_optional(connection), one))
    }

    pub(super) async fn one(self, db: &mut Db<'_>) -> Result<Row, StoreError> {
        self.optional(db).await?.ok_or_else(|| sqlx::Error::RowNotFound.into())
    }

    pub(super) async fn all(self, db: &mut Db<'_>) -> Result<Vec<Row>, StoreError> {
        Ok(run!(self, db, |query, connection| query.fetch_all(connection), many))
    }
}

fn sqlite_arguments(values: Vec<Value>) -> Result<SqliteArguments, StoreError> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Int(it) => arguments.add(it),
            Value::Bool(it) => arguments.add(it),
            Value::Text(it) => arguments.add(it),
            Value::Bytes(it) => arguments.add(it),
            Value::Id(it) => arguments.add(it),
            Value::Ints(it) => arguments.add(serde_json::to_string(&it).unwrap_or_default()),
            Value::Texts(it) => arguments.add(serde_json::to_string(&it).unwrap_or_default()),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn postgres_arguments(values: Vec<Value>) -> Result<PgArguments, StoreError> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Int(it) => arguments.add(it),
            Value::Bool(it) => arguments.add(it),
            Value::Text(it) => arguments.add(it),
            Value::Bytes(it) => arguments.add(it),
            Value::Id(it) => arguments.add(it),
            Value::Ints(it) => arguments.add(it),
            Value::Texts(it) => arguments.add(it),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

/// A statement over rows of values: `before`, the rows as a table named by the first word of
/// `after`, `after`. The rows' columns are `column1` and so on, and the first is never NULL.
#[derive(Debug, Clone)]
pub(super) struct Table {
    pub(super) before: &'static str,
    pub(super) columns: usize,
    /// It has to leave out the padding, whose columns are all NULL: a join does so by itself.
    pub(super) after: Sql,
}

impl Table {
    /// Runs it over any number of rows.
    pub(super) async fn run(
        &self,
        values: Vec<Value>,
        db: &mut Db<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let mut found = Vec::new();
        for query in self.queries(values, db) {
            found.extend(query.all(db).await?);
        }
        Ok(found)
    }

    /// The same, for the number of rows that it changed.
    pub(super) async fn execute(
        &self,
        values: Vec<Value>,
        db: &mut Db<'_>,
    ) -> Result<u64, StoreError> {
        let mut changed = 0;
        for query in self.queries(values, db) {
            changed += query.execute(db).await?;
        }
        Ok(changed)
    }

    /// Few texts are ever prepared: the rows are filled up to a power of two.
    fn queries(&self, mut values: Vec<Value>, db: &Db<'_>) -> Vec<Query> {
        let mut queries = Vec::with_capacity(1);
        while !values.is_empty() {
            let rest = values.split_off(values.len().min(ROWS_MAX * self.columns));
            let rows = (values.len() / self.columns).next_power_of_two();
            let padding: Vec<Value> = values[..self.columns].iter().map(Value::absent).collect();
            while values.len() < rows * self.columns {
                values.extend_from_slice(&padding);
            }
            queries.push(query(self.text(rows, db)).bind_all(values));
            values = rest;
        }
        queries
    }

    /// Its text for so many rows, which is made once.
    fn text(&self, rows: usize, db: &Db<'_>) -> Sql {
        let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |text: &str| text.as_ptr().addr();
        let is_sqlite = matches!(db, Db::Sqlite(_));
        let text = texts
            .entry((is_sqlite, at(self.before), at(self.after_for(db)), rows))
            .or_insert_with(|| self.made(rows, db).into());
        Sql::Rows(Arc::clone(text))
    }

    fn after_for(&self, db: &Db<'_>) -> &str {
        match (&self.after, db) {
            (Sql::Both(text), _)
            | (Sql::Each { sqlite: text, .. }, Db::Sqlite(_))
            | (Sql::Each { postgres: text, .. }, Db::Postgres(_)) => text,
            (Sql::Rows(text), _) => text,
        }
    }

    fn made(&self, rows: usize, db: &Db<'_>) -> String {
        let after = self.after_for(db);
        let length = self.before.len() + after.len() + rows * self.columns * 7;
        let mut text = String::with_capacity(length);
        text.push_str(self.before);
        for row in 0..rows {
            text.push_str(if row == 0 { " (VALUES (" } else { "), (" });
            for column in 1..=self.columns {
                text.push_str(if column == 1 { "" } else { ", " });
                match db {
                    // Without a number: SQLite looks up the name of a numbered one among all others.
                    Db::Sqlite(_) => text.push('?'),
                    Db::Postgres(_) => {
                        text.push('$');
                        text.push_str(&(row * self.columns + column).to_string());
                    }
                }
            }
        }
        text.push_str(")) ");
        text.push_str(after);
        text
    }
}

/// Every text of every [`Table`].
static TEXTS: LazyLock<Mutex<HashMap<TextKey, Arc<str>>>> = LazyLock::new(Mutex::default);

/// The database, where a table's two parts stand, and its rows.
type TextKey = (bool, usize, usize, usize);

/// Rows of values in one statement at most.
const ROWS_MAX: usize = 256;

/// A statement that locks the rows which it reads, where the database does not do so by itself.
macro_rules! locking {
    ($text:expr) => {
        $crate::store::db::locking!($text, "FOR UPDATE")
    };
    ($text:expr, $how:literal) => {
        $crate::store::db::Sql::Each { sqlite: $text, postgres: concat!($text, " ", $how) }
    };
}
pub(super) use locking;

/// A row that was read.
#[derive(Debug)]
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// What can be read: `i64`, `bool`, `String`, `Vec<u8>`, `Uuid`, and each of them where it may be
/// absent.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl Row {
    pub(super) fn get<T: Column>(&self, column: &'static str) -> Result<T, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(column)?,
            Self::Postgres(row) => row.try_get(column)?,
        })
    }

    /// The only column.
    pub(super) fn value<T: Column>(&self) -> Result<T, StoreError> {
        Ok(match self {
            Self::Sqlite(row) => row.try_get(0)?,
            Self::Postgres(row) => row.try_get(0)?,
        })
    }

    /// A whole number that fits.
    pub(super) fn number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, StoreError> {
        T::try_from(self.get(column)?).map_err(|_| StoreError::Foreign(column))
    }

    /// A whole number that fits, where there is one.
    pub(super) fn maybe<T: TryFrom<i64>>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let number: Option<i64> = self.get(column)?;
        number.map(T::try_from).transpose().map_err(|_| StoreError::Foreign(column))
    }

    /// Exactly `N` bytes.
    pub(super) fn bytes<const N: usize>(
        &self,
        column: &'static str,
    ) -> Result<[u8; N], StoreError> {
        self.get::<Vec<u8>>(column)?.try_into().map_err(|_| StoreError::Foreign(column))
    }
}

/// A connection to work on.
#[derive(Debug)]
pub(super) enum Db<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

/// A connection that writes.
#[derive(Debug)]
pub(super) enum Session {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Session {
    /// Begins to write. `relaxed`: the commit does not wait for the disk.
    pub(super) async fn begin(&mut self, relaxed: bool) -> Result<Transaction<'_>, StoreError> {
        Ok(match self {
            // Whether it waits is the connection's setting: see `relax`.
            Self::Sqlite(connection) => {
                Transaction::Sqlite(connection.begin_with("BEGIN IMMEDIATE").await?)
            }
            Self::Postgres(connection) => Transaction::Postgres(
                connection
                    .begin_with(if relaxed {
                        "BEGIN; SET LOCAL synchronous_commit = off"
                    } else {
                        "BEGIN"
                    })
                    .await?,
            ),
        })
    }

    #[cfg(test)]
    pub(super) fn db(&mut self) -> Db<'_> {
        match self {
            Self::Sqlite(connection) => Db::Sqlite(connection),
            Self::Postgres(connection) => Db::Postgres(connection),
        }
    }

    pub(super) async fn close(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }
}

/// Undone when it is dropped.
#[derive(Debug)]
pub(super) enum Transaction<'c> {
    Sqlite(sqlx::Transaction<'c, Sqlite>),
    Postgres(sqlx::Transaction<'c, Postgres>),
}

impl Transaction<'_> {
    pub(super) fn db(&mut self) -> Db<'_> {
        match self {
            Self::Sqlite(transaction) => Db::Sqlite(transaction),
            Self::Postgres(transaction) => Db::Postgres(transaction),
        }
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await?,
            Self::Postgres(transaction) => transaction.commit().await?,
        }
        Ok(())
    }
}

/// A connection that reads, until it is dropped.
#[derive(Debug)]
pub(super) enum Reader {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

impl Reader {
    pub(super) fn db(&mut self) -> Db<'_> {
        match self {
            Self::Sqlite(connection) => Db::Sqlite(connection),
            Self::Postgres(connection) => Db::Postgres(connection),
        }
    }
}

/// Connections that read.
#[derive(Debug, Clone)]
pub(super) enum Readers {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Readers {
    pub(super) async fn acquire(&self) -> Result<Reader, StoreError> {
        Ok(match self {
            Self::Sqlite(pool) => Reader::Sqlite(pool.acquire().await?),
            Self::Postgres(pool) => Reader::Postgres(pool.acquire().await?),
        })
    }

    /// One snapshot of the database, given back when it is dropped.
    pub(super) async fn snapshot(&self) -> Result<Transaction<'static>, StoreError> {
        Ok(match self {
            Self::Sqlite(pool) => Transaction::Sqlite(pool.begin().await?),
            Self::Postgres(pool) => Transaction::Postgres(
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?,
            ),
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}
