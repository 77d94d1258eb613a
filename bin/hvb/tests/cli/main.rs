//! The program from the outside: what it prints and how it ends.

mod balance;
mod balloon;
mod common;
mod doctor;
mod errors;
mod generate;
mod names;
mod page;
mod place;
mod simulate;
mod stop;
mod top;
mod web;
