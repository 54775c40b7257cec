"""What trainers read: datasets, chat templates and batches."""
