"""FastAPI routers: parse, authorise, call a domain module, answer. No decisions are made here."""
