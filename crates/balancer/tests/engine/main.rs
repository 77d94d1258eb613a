//! The engine as a whole: its rules, its properties, and its behaviour with guests that follow it.

mod closed_loop;
mod properties;
mod rules;
mod world;
