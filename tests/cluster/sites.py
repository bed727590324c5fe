"""Output of the commands of real clusters: a text, or a script that begins with `case`."""

from __future__ import annotations


def _commands(sinfo: str, partitions: str, config: str, associations: str, account: str, qos: str) -> dict[str, str]:
    def choose(**answers: str) -> str:
        cases = "\n".join(f"*{words}*) cat <<'END'\n{text.strip()}\nEND\n;;" for words, text in answers.items())
        return f'case "$*" in\n{cases}\nesac'

    return {
        "sinfo": sinfo.lstrip(),
        "scontrol": choose(partition=partitions, config=config),
        "sacctmgr": choose(assoc=associations, user=account, qos=qos),
    }


# Nodes of two V100; students use the account dssc, for two hours.
ORFEO = _commands(
    sinfo="""
GPU*|up|18:00:00|4|24|240000|0|gpu:2|(null)
DGX|up|6-06:00:00|2|128|1000000|0|gpu:a100:8(S:0-7)|dgx,a100
MIXED|up|infinite|3+|112|1000000|900000|gpu:h100:8,shard:16|h100
MIXED|up|infinite|10|64|500000|0|(null)|cpu
EPYC|inact|6-06:00:00|8|128|512000|0|(null)|(null)
""",
    partitions="""
PartitionName=GPU AllowGroups=ALL AllowAccounts=dssc,lade Default=YES MaxNodes=2 MaxTime=18:00:00 QoS=gpuq State=UP
PartitionName=DGX AllowAccounts=lade AllowQos=normal,long Default=NO MaxTime=6-06:00:00 QoS=N/A State=UP
""",
    config="""
Configuration data as of 2026-01-01T00:00:00
AccountingStorageEnforce = associations,limits,qos,safe
ClusterName             = orfeo
JobRequeue              = 1
JobSubmitPlugins        = (null)
MaxArraySize            = 501
SLURM_VERSION           = 23.11.4
TmpFS                   = /tmp
""",
    associations="""
orfeo|dssc||normal,gpuq||5|20|2:00:00||
elsewhere|other||||||0:10:00||
""",
    account="dssc",
    qos="""
normal|||||||
long|PartitionTimeLimit|||6-00:00:00|||
gpuq||5|20||node=2|cpu=96,gres/gpu=4|
""",
)

# Nodes of four A100; a QOS lifts the partition's limit of a day; two accounts.
LEONARDO = _commands(
    sinfo="""
boost_usr_prod|up|1-00:00:00|3400|32|494000|0|gpu:a100:4(S:0-1)|(null)
boost_usr_prod|up|1-00:00:00|56|32|514500|0|gpu:a100:4(S:0-1)|(null)
boost_fua_dbg|up|10:00|16|32|494000|0|gpu:a100:4|(null)
lrd_all_serial*|up|4:00:00|2|32|30800|0|(null)|(null)
""",
    partitions="""
PartitionName=boost_usr_prod DenyQos=boost_qos_fuadbg MaxNodes=64 MaxTime=1-00:00:00 State=UP MaxMemPerNode=494000
PartitionName=boost_fua_dbg AllowGroups=g-fusion-nobody AllowAccounts=ALL Default=NO MaxTime=00:10:00 QoS=N/A State=UP
PartitionName=lrd_all_serial Default=YES MaxNodes=1 MaxTime=04:00:00 QoS=qos_serial State=UP MaxMemPerNode=30800
""",
    config="""
AccountingStorageEnforce = associations,limits,qos
ClusterName = leonardo
JobRequeue = 0
JobSubmitPlugins = lua
MaxArraySize = 1001
""",
    associations="""
leonardo|iscra_a||boost_qos_bprod,boost_qos_dbg,boost_qos_lprod,normal|normal|||||
leonardo|EUHPC_B||boost_qos_dbg,normal|normal|||||
galileo|iscra_a||g100_qos|g100_qos|||00:01:00||
""",
    account="iscra_a",
    qos="""
normal|DenyOnLimit|||1-00:00:00|||
boost_qos_dbg|DenyOnLimit|||00:30:00|node=2|gres/gpu=8|
boost_qos_bprod|DenyOnLimit|||1-00:00:00|||
boost_qos_lprod|DenyOnLimit,PartitionTimeLimit,PartitionMaxNodes|||4-00:00:00|node=3|gres/gpu=12|
boost_qos_fuadbg|||||||
""",
)

# A plugin routes each job by its constraint; the limit of the default QOS is lower than that of the partition.
JEAN_ZAY = _commands(
    sinfo="""
gpu_p13*|up|4-04:00:00|396|80|160000|0|gpu:4|v100-32g,v100
gpu_p5|up|4-04:00:00|52|128|480000|0|gpu:8|a100
gpu_p6|up|4-04:00:00|364|192|480000|0|gpu:4|h100
cpu_p1|up|4-04:00:00|720|80|160000|0|(null)|(null)
""",
    partitions="""
PartitionName=gpu_p13 AllowAccounts=ALL AllowQos=ALL Default=YES MaxNodes=UNLIMITED MaxTime=4-04:00:00 QoS=N/A State=UP
PartitionName=gpu_p6 AllowAccounts=ALL AllowQos=ALL Default=NO MaxNodes=UNLIMITED MaxTime=4-04:00:00 QoS=N/A State=UP
""",
    config="""
AccountingStorageEnforce = associations,limits,qos,safe
ClusterName = jean-zay
JobRequeue = 1
JobSubmitPlugins = lua
""",
    associations="""
jean-zay|xxx@v100||qos_gpu-dev,qos_gpu-t3,qos_gpu-t4|qos_gpu-t3|||||
jean-zay|xxx@h100||qos_gpu_h100-dev,qos_gpu_h100-t3|qos_gpu_h100-t3|||||
""",
    account="xxx@v100",
    qos="""
qos_gpu-t3||||20:00:00||gres/gpu=512|
qos_gpu-t4||||4-04:00:00|gres/gpu=16|gres/gpu=96|
qos_gpu-dev||||02:00:00|gres/gpu=32|gres/gpu=32|
qos_gpu_h100-t3||||20:00:00||gres/gpu=512|
qos_gpu_h100-dev||||02:00:00||gres/gpu=32|
""",
)
