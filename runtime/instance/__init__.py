"""The pure half of an instance: sequences, pages, prefix index, preemption, step composition. Events in, StepPlans and messages out."""
