"""What is in a store, what is in it twice, what gives it away, and what each split lets through."""
