package gvisor

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/runtime/runtimetest"
)

func TestContract(t *testing.T) {
	runtimetest.Run(t, runtimetest.Harness{New: func(t testing.TB) runtime.Runtime {
		t.Helper()
		rt, err := New(t.Context(), options(filepath.Join(world, "contract")))
		require.NoError(t, err)
		return rt
	}})
}
