// Command roost is the whole of Roost in one binary: the server (`roost up`) and the command
// line that talks to one.
package main

import (
	"os"

	"github.com/roosthq/roost/internal/cli"
)

// version is set by the linker.
var version = "dev"

func main() {
	os.Exit(cli.Main(cli.Options{Version: version, LocalDoctor: localDoctor}, upCommand()))
}
