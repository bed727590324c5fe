"""Explain why a job waits: SLURM's own word for it → plain words, with what to do."""

from __future__ import annotations

import re

_LESS = "cancel, and ask for less"


def _table(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), words) for pattern, words in rows)


# Words are matched from their beginning, and the first row that fits is taken; {whose}: of the QOS, or of the account.
_NEVER = _table(  # until somebody changes the job or the cluster, however long one waits
    ("DependencyNeverSatisfied", "the job it waits for did not end as it should: cancel and submit it again"),
    ("(QOS|Assoc)MaxWall|QOSTimeLimit|AssociationTimeLimit",
     "{whose} does not allow so much time: cancel, and submit with a shorter --time"),
    ("PartitionTimeLimit", "the partition does not allow so much time: cancel, and submit with a shorter --time"),
    ("PartitionNodeLimit", "the partition does not have or allow so many nodes: cancel, and submit with fewer --gpus"),
    ("MaxMemPerLimit", "no job may have so much memory here: cancel, and submit with less --memory"),
    (r"(QOS|Assoc)Max\w*Per(Job|Node)", f"{{whose}} allows no single job so much: {_LESS}"),
    ("QOSMin", "the QOS is for larger jobs: cancel, and submit with another --qos"),
    ("JobHeldUser", "held by its user: scontrol release {job_id}"),
    ("JobHeldAdmin", "held by an administrator: ask them"),
    ("JobHoldMaxRequeue", "it was requeued too often, and SLURM holds it: scontrol release {job_id}, or cancel it"),
    ("InvalidAccount", "the account is not valid here: cancel, and submit with another --account"),
    ("AccountNotAllowed", "the partition does not take this account: cancel, and submit with another --account"),
    ("InvalidQOS", "the QOS is not valid here: cancel, and submit with another --qos"),
    ("QOSNotAllowed", "the partition does not take this QOS: cancel, and submit with another --qos"),
    ("BadConstraints", f"no node can ever fit the request: {_LESS}"),
    ("ReservationDeleted", "its reservation is no more: cancel, and submit without --reservation"),
    ("DeadLine", "it cannot end before its deadline: cancel it"),
)  # fmt: skip
_FOR_NOW = _table(
    ("Priority", "jobs of higher priority go first"),
    ("Resources", "waits until enough nodes are free"),
    ("BeginTime", "not yet allowed to start (SLURM lets a job wait about two minutes after a requeue)"),
    ("Dependency", "waits for another job to end"),
    ("SchedDefer", "SLURM looks at it in its next round"),
    ("Prolog", "its nodes are being prepared"),
    ("Cleaning", "its previous start is still being cleaned up"),
    ("JobArrayTaskLimit", "the array lets no more of its tasks run at once"),
    (r"(QOS|Assoc)(MaxJobs|JobLimit|iationJobLimit)", "{whose} lets no more of your jobs run at once"),
    (r"QOSMax", "you use all that the QOS allows one user at once"),
    (r"AssocGrpGRESMinutes", "the account has used up its GPU hours"),
    (r"AssocGrpCPUMinutes", "the account has used up its CPU hours"),
    (r"AssocGrpBilling(Minutes|$)", "the account has used up its budget"),
    (r"(QOS|Assoc)Grp(\w+(?<!Run)Minutes|Wall)|QOSUsageThreshold", "{whose} has used up its hours"),
    (r"(QOS|Assoc)Grp", "{whose} as a whole uses all it may at once"),
    (r"Max\w+PerAccount", "the account as a whole uses all it may at once"),
    (r"QOS|Assoc|AccountingPolicy", "a limit of {whose}"),
    ("ReqNodeNotAvail", "nodes it needs are down, drained or reserved, often for a maintenance: sinfo -R tells"),
    ("Nodes required for job are DOWN", "nodes it needs are down, drained or reserved: sinfo -R tells"),
    ("NodeDown", "a node it needs is down"),
    ("PartitionConfig", "the partition has no such nodes at this moment: sinfo tells which are there"),
    ("Partition(Down|Inactive)", "the partition is closed for now"),
    ("Reservation", "waits for its reservation to begin"),
    ("License", "waits for a licence"),
    ("BurstBuffer", "its files are being copied to fast disks"),
    ("Power", "waits for electric power: nodes are being switched on, or kept off"),
)


def explain(reason: str, job_id: str = "ID") -> str:
    """A pending reason of SLURM's in plain words, with what to do where something can be done."""
    if "launch failed" in reason or "requeued held" in reason.replace("_", " "):
        return f"a node could not start it, and SLURM holds it: scontrol release {job_id}"
    whose = "the QOS" if reason.startswith("QOS") else "the account"
    for table, beginning in ((_NEVER, "will not start by itself: "), (_FOR_NOW, "")):
        for pattern, words in table:
            if pattern.match(reason):
                return beginning + words.format(job_id=job_id, whose=whose)
    return reason
