"""Pictures and pages: what a person looks at to judge a run."""
