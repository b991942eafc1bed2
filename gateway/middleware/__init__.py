"""What every HTTP request passes before its route: its id, the body's limit, the error edge."""
