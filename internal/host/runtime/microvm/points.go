package microvm

import "github.com/roosthq/roost/internal/failpoint"

var _ = failpoint.Declare("microvm.stop.detach")
