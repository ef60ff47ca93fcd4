package dm_test

import (
	"os"
	"testing"

	"github.com/roosthq/roost/test/census"
)

// prefix begins the name of everything that these tests make.
const prefix = "roost-dmt5"

func TestMain(m *testing.M) { os.Exit(census.Main(m, census.Own(prefix))) }
