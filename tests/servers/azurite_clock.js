// Preloaded into Azurite (`node -r azurite_clock.js …`) so that its clock can be moved: its time is ahead of the true one by the
// seconds in the file that MTASK_TEST_CLOCK names; a second number there is a time (UTC, since the epoch) at which the true one
// stands still, but for a microsecond at each look.
"use strict";
const fs = require("fs");
const TrueDate = Date;
let looks = 0;

function now() {
  const [ahead, standsAt] = fs.readFileSync(process.env.MTASK_TEST_CLOCK, "utf8").trim().split(" ").map(Number);
  const base = standsAt === undefined ? TrueDate.now() : standsAt * 1000 + looks++ / 1000;
  return base + ahead * 1000;
}

class MovedDate extends TrueDate {
  constructor(...args) {
    if (args.length === 0) super(now());
    else super(...args);
  }
  static now() {
    return Math.floor(now());
  }
}

globalThis.Date = MovedDate;
