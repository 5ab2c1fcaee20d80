//! The format, from outside: golden files, round trips, and bytes that are wrong in every way.

mod batch;
mod errors;
mod golden;
mod headers;
mod inputs;
mod properties;
mod walk;
