"""A run of a plan: intake, keyed dispatch, stage workers, committer, shutdown, bus.

reader ─► Intake ─► Window ─► Dispatch 1 ─► workers 1 ─► Dispatch 2 ─► … ─► exit: Committer, or a consumer
                      ▲          ▲ │ admission                │                    │
                      │          │ └─ waits: permit, rate     │ failure            │ settled
                      │          └────── due-heap ◄───────────┘ retry              │
                      └────────────────────────────────────────────────────────────┘ room
"""
