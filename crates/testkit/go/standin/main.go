// Plays a program where its own image can't be had: it listens where that would listen and says so, and
// ends well where that would end. As `pause` it holds a pod's namespaces.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	name := filepath.Base(os.Args[0])
	if name == "pause" {
		wait()
		return
	}
	// Only servers serve; helpers such as pg_isready or psql are done at once.
	if name != "standin" && !slices.Contains(strings.Fields(os.Getenv("STANDIN_SERVERS")), name) {
		return
	}
	if reason := os.Getenv("STANDIN_CRASH"); reason != "" {
		log.Fatal(reason)
	}
	answer := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("STANDIN_SAYS")) }
	for _, port := range strings.Fields(os.Getenv("STANDIN_PORTS")) {
		go func() { log.Fatal(http.ListenAndServe(":"+port, http.HandlerFunc(answer))) }()
	}
	wait()
}

func wait() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
}
