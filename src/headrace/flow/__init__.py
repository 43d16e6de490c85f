"""The composition root: Flow, map, Group, Inbox, open. Here sources, lanes, engine and sinks are put together."""
