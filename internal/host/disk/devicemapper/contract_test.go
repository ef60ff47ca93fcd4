package devicemapper_test

import (
	"testing"

	"github.com/roosthq/roost/internal/host/disk/disktest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	d := newDriver(t, "cntr")
	t.Run("suite", func(t *testing.T) {
		disktest.Run(t, disktest.Env{Driver: d, Open: disktest.OpenDevice})
	})
	census(t, d)
}
