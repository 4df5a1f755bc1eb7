#!/usr/bin/env bash
# import.sh BUCKET [REGION]   Makes an AMI of the image for EC2, by the AWS CLI and its credentials, and prints the AMI's id.
#
# The disk goes to S3, is imported as a snapshot, and leaves S3 again. The account needs the service role `vmimport`, which may read
# the bucket (https://docs.aws.amazon.com/vm-import/latest/userguide/required-permissions.html), and whoever calls
# s3:PutObject, s3:DeleteObject, ec2:ImportSnapshot, ec2:DescribeImportSnapshotTasks, ec2:RegisterImage, ec2:DescribeImages and
# ec2:CreateTags. An AMI that is there already is not made again: it is called after the image's content.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bucket=${1:?a bucket}
region=${2:-${AWS_REGION:?a region}}
image=$("$here/../build.sh" --path ami)
[[ -f $image/disk.qcow2 ]] || { echo "ami: build it first: images/build.sh ami" >&2; exit 1; }
version=$(cat "$image/kubernetes-version")
name=giantnetes-$version-$(basename "$image")
# Minutes that an import may take.
patience=60

ask() { aws --region "$region" --output text "$@"; }
say() { echo "ami: $*" >&2; }

id=$(ask ec2 describe-images --owners self --filters "Name=name,Values=$name" --query 'Images[0].ImageId')
if [[ $id != None ]]; then
  say "$name is there"
  echo "$id"
  exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"; ask s3api delete-object --bucket "$bucket" --key "$name.raw" > /dev/null || true' EXIT
say "to s3://$bucket/$name.raw"
qemu-img convert -f qcow2 -O raw "$image/disk.qcow2" "$work/disk.raw"
ask s3 cp --only-show-errors "$work/disk.raw" "s3://$bucket/$name.raw" >&2
task=$(ask ec2 import-snapshot --description "$name" --disk-container "Format=RAW,UserBucket={S3Bucket=$bucket,S3Key=$name.raw}" \
  --query ImportTaskId)
for ((minute = 0; ; minute++)); do
  read -r status snapshot said < <(ask ec2 describe-import-snapshot-tasks --import-task-ids "$task" \
    --query 'ImportSnapshotTasks[0].SnapshotTaskDetail.[Status,SnapshotId,StatusMessage]')
  case $status in
    completed) break ;;
    deleting | deleted) say "import $task failed: $said"; exit 1 ;;
  esac
  ((minute < patience)) || { say "import $task is $status after $minute minutes"; exit 1; }
  say "import $task is $status: $said"
  sleep 60
done
# Without a root device of this name no launch template of ours finds the root disk. UEFI, ENA and version 2 of the metadata
# service are what nodes are made for.
id=$(ask ec2 register-image --name "$name" --description "Node of a guest cluster, Kubernetes $version" --architecture x86_64 \
  --virtualization-type hvm --boot-mode uefi --ena-support --imds-support v2.0 --root-device-name /dev/xvda \
  --block-device-mappings "DeviceName=/dev/xvda,Ebs={SnapshotId=$snapshot,VolumeType=gp3,DeleteOnTermination=true}" --query ImageId)
ask ec2 create-tags --resources "$id" "$snapshot" --tags Key=app.kubernetes.io/managed-by,Value=giantnetes \
  "Key=giantnetes.io/kubernetes-version,Value=$version" >&2
echo "$id"
