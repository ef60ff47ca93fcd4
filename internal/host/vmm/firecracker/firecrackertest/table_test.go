package firecrackertest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

func TestCheckIsStrict(t *testing.T) {
	t.Parallel()
	table := firecrackertest.API()
	require.NoError(t, table.Check("VMState", []byte(`{"state":"Paused"}`)))
	for _, c := range []struct{ kind, body, says string }{
		{"VMState", `{"state":"Paused","x":1}`, "unknown field `x`"},
		{"VMState", `{}`, "missing field `state`"},
		{"VMState", `{"state":"paused"}`, "unknown variant"},
		{"VMState", `{"state":1}`, "expected a string"},
		{"VMState", `[]`, "expected struct"},
		{"MachineConfig", `{"vcpu_count":33,"mem_size_mib":1}`, "invalid value: 33"},
		{"MachineConfig", `{"vcpu_count":1.5,"mem_size_mib":1}`, "vcpu_count"},
		{"MachineConfig", `{"vcpu_count":1,"mem_size_mib":1,"smt":"no"}`, "expected a boolean"},
		{"SnapshotLoad", `{"snapshot_path":"a","mem_backend":{"backend_type":"File"}}`, "missing field `backend_path`"},
		{"SnapshotLoad", `{"snapshot_path":"a","network_overrides":[{"iface_id":"a"}]}`, "missing field `host_dev_name`"},
	} {
		require.ErrorContains(t, table.Check(c.kind, []byte(c.body)), c.says, c.body)
	}
}
