package qcow2

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare(
	"qcow2.open.written",
	"qcow2.publish.link",
	"qcow2.seal.sync",
)
