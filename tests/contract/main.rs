//! The published contract, line by line: what an acknowledgement means, what every error says, and
//! that nobody waits for ever. On the simulated machine unless a check needs a real one.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

mod acknowledgement;
mod background;
mod cancellation;
mod cancellation_real;
mod changes;
mod clock;
mod concurrency;
mod damage;
mod damage_facts;
mod endings;
mod errors;
mod failure;
mod faulty;
mod full_disk;
mod inputs;
mod known;
mod lock;
mod machine;
mod memory;
mod openings;
mod reads;
mod settings;
