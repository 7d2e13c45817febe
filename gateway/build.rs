//! Rebuilds the crate when a migration changes: `sqlx::migrate!` embeds their text.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
