"""The URLs, one file per subject. Handlers only hand over; what they hand over to knows no URL."""
